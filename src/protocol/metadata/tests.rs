use super::frames::frame_crc;
use super::*;
use proptest::prelude::*;
use proptest::sample::subsequence;

const SEED: u32 = 77;
const DISKS: u16 = 3;

/// Draws changes; many do not fit, as in life.
fn any_record() -> impl Strategy<Value = MetadataRecord> {
    let id = || (1u64..5).prop_map(TopicId);
    let disk = || (0..DISKS).prop_map(DiskId);
    let disks = || subsequence((0..DISKS).map(DiskId).collect::<Vec<_>>(), 1..=3).prop_shuffle();
    let replicas = || proptest::collection::vec(disks(), 1..4);
    let config = |count: usize| TopicConfig::new().partitions(u32::try_from(count).unwrap());
    let offset = || (0u64..99).prop_map(Offset);
    prop_oneof![
        1 => (any::<u128>(), 1u32..3)
            .prop_map(|(store, format)| MetadataRecord::StoreCreated { store: StoreId(store), format }),
        1 => (disk(), any::<u128>(), 1u64..4).prop_map(|(disk, uuid, incarnation)| {
            MetadataRecord::DiskAdded { disk, uuid, incarnation }
        }),
        2 => any::<bool>().prop_map(|clean| MetadataRecord::Opened { clean }),
        5 => (id(), "[a-c]", replicas()).prop_map(move |(id, name, replicas)| {
            let config = config(replicas.len());
            MetadataRecord::TopicCreated { id, name, config, replicas }
        }),
        3 => (id(), 1usize..5, 0u64..4).prop_map(move |(id, count, kib)| {
            let config = config(count).segment_bytes(4096 + (kib << 10));
            MetadataRecord::TopicAltered { id, config }
        }),
        2 => (id(), replicas()).prop_map(|(id, replicas)| MetadataRecord::PartitionsAdded { id, replicas }),
        1 => id().prop_map(|id| MetadataRecord::TopicDeleted { id }),
        1 => id().prop_map(|id| MetadataRecord::TopicRemoved { id }),
        3 => (id(), 0u32..4, offset()).prop_map(|(id, partition, offset)| {
            MetadataRecord::LogStartRaised { id, partition, offset }
        }),
        4 => (id(), 0u32..4, disk(), offset()).prop_map(|(id, partition, disk, durable)| {
            MetadataRecord::ReplicaSuspect { id, partition, disk, durable }
        }),
        2 => (id(), 0u32..4, disk())
            .prop_map(|(id, partition, disk)| MetadataRecord::ReplicaCleared { id, partition, disk }),
        2 => (id(), 0u32..4, disk())
            .prop_map(|(id, partition, disk)| MetadataRecord::ReplicaStale { id, partition, disk }),
        6 => (
            (id(), 0u32..4, proptest::option::of(disk()), 0u32..6, disks()),
            (disks(), proptest::option::of(offset()), offset()),
        )
            .prop_map(|((id, partition, leader, epoch, isr), (eligible, start, high_watermark))| {
                let epoch = LeaderEpoch(epoch);
                MetadataRecord::LeaderChanged {
                    id, partition, leader, epoch, isr, eligible, start, high_watermark,
                }
            }),
        2 => (id(), 0u32..4, disks()).prop_map(|(id, partition, replicas)| {
            MetadataRecord::ReplicasChanged { id, partition, replicas }
        }),
        2 => (0u64..9).prop_map(|next| MetadataRecord::ProducerIdBlock { next }),
        1 => (0u64..4).prop_map(|next_topic| MetadataRecord::Counters { next_topic }),
        1 => (id(), "[a-c]").prop_map(|(id, name)| MetadataRecord::TopicGone { id, name }),
        3 => ("[a-c]{0,2}", 0u64..9, 0u32..4).prop_map(|(name, number, epoch)| {
            let (id, epoch) = (ProducerId(ProducerId::NAMED | number), ProducerEpoch(epoch));
            MetadataRecord::ProducerNamed { name, id, epoch }
        }),
    ]
}

fn any_history() -> impl Strategy<Value = Vec<MetadataRecord>> {
    proptest::collection::vec(any_record(), 0..60).prop_map(|records| {
        let mut history = new_store();
        history.extend(records);
        history
    })
}

fn new_store() -> Vec<MetadataRecord> {
    let mut records = vec![MetadataRecord::StoreCreated { store: StoreId(9), format: 1 }];
    records.extend((0..DISKS).map(|disk| MetadataRecord::DiskAdded {
        disk: DiskId(disk),
        uuid: disk.into(),
        incarnation: 1,
    }));
    records
}

fn topic(id: u64, name: &str, replicas: &[&[u16]]) -> MetadataRecord {
    let disks = |numbers: &&[u16]| numbers.iter().copied().map(DiskId).collect();
    MetadataRecord::TopicCreated {
        id: TopicId(id),
        name: name.to_owned(),
        config: TopicConfig::new().partitions(u32::try_from(replicas.len()).unwrap()),
        replicas: replicas.iter().map(disks).collect(),
    }
}

fn leader(disk: Option<u16>, epoch: u32, isr: &[u16]) -> MetadataRecord {
    MetadataRecord::LeaderChanged {
        id: TopicId(1),
        partition: 0,
        leader: disk.map(DiskId),
        epoch: LeaderEpoch(epoch),
        isr: isr.iter().copied().map(DiskId).collect(),
        eligible: Vec::new(),
        start: Some(Offset(u64::from(epoch) * 10)),
        high_watermark: Offset(u64::from(epoch)),
    }
}

fn suspect(disk: u16, durable: u64) -> MetadataRecord {
    let (id, disk, durable) = (TopicId(1), DiskId(disk), Offset(durable));
    MetadataRecord::ReplicaSuspect { id, partition: 0, disk, durable }
}

fn cleared(disk: u16) -> MetadataRecord {
    MetadataRecord::ReplicaCleared { id: TopicId(1), partition: 0, disk: DiskId(disk) }
}

fn applied(records: &[MetadataRecord]) -> MetadataState {
    let mut state = MetadataState::default();
    for record in records {
        let before = state.clone();
        match state.apply(record) {
            Ok(()) => check(&state),
            Err(_) => assert_eq!(state, before, "a refused change changes nothing: {record:?}"),
        }
    }
    state
}

/// A new store with one topic on all of its disks, and the changes, which all fit.
fn with_topic(changes: &[MetadataRecord]) -> MetadataState {
    let mut state = applied(&new_store());
    state.apply(&topic(1, "a", &[&[0, 1, 2]])).unwrap();
    for change in changes {
        state.apply(change).unwrap();
    }
    state
}

/// The invariants on top of the file.
fn check(state: &MetadataState) {
    for topic in state.topics() {
        assert_eq!(topic.config.partitions as usize, topic.partitions.len());
        assert!(topic.id < state.next_topic_id());
        assert_eq!(state.topic_by_name(&topic.name), Some(topic));
        for partition in &topic.partitions {
            assert!(partition.replicas.iter().all(|disk| state.disk(*disk).is_some()));
            assert!(partition.isr.iter().all(|disk| partition.replicas.contains(disk)));
            assert!(partition.leader.is_none_or(|disk| partition.isr.contains(&disk)));
            assert!(partition.suspects.keys().all(|disk| partition.replicas.contains(disk)));
            assert!(partition.stale.iter().all(|disk| {
                partition.replicas.contains(disk)
                    && !partition.isr.contains(disk)
                    && !partition.eligible.contains(disk)
                    && partition.leader != Some(*disk)
            }));
        }
    }
    assert_eq!(state.names.len(), state.topics.len());
    assert!(state.deleted.keys().all(|id| !state.topics.contains_key(id)));
}

proptest! {
    #[test]
    fn frames_come_back_as_they_were_written(
        records in proptest::collection::vec(any_record(), 1..8), zeroes in 0usize..40
    ) {
        let mut bytes = Vec::new();
        for (index, record) in (1..).zip(&records) {
            encode_frame(3, index, record, SEED, &mut bytes);
        }
        let sound = bytes.len();
        bytes.resize(sound + zeroes, 0);
        let mut reader = FrameReader::new(&bytes, SEED);
        let mut end = 0;
        for (index, record) in (1..).zip(&records) {
            let frame = reader.next_frame().unwrap();
            prop_assert_eq!((frame.term, frame.index, &frame.record), (3, index, record));
            prop_assert!(frame.end > end);
            end = frame.end;
        }
        prop_assert_eq!(end, sound);
        prop_assert_eq!(reader.next_frame(), Err(FrameEnd::Clean));
    }

    #[test]
    fn every_flipped_byte_is_noticed(record in any_record(), flip in 1u8..=255) {
        let mut bytes = Vec::new();
        encode_frame(1, 1, &record, SEED, &mut bytes);
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= flip;
            let read = FrameReader::new(&flipped, SEED).next_frame();
            prop_assert!(matches!(read, Err(FrameEnd::Invalid { position: 0, .. })), "byte {}", at);
        }
        let elsewhere = FrameReader::new(&bytes, SEED + 1).next_frame();
        prop_assert!(matches!(elsewhere, Err(FrameEnd::Invalid { .. })), "another store's");
    }

    #[test]
    fn a_cut_is_clean_only_between_frames(
        records in proptest::collection::vec(any_record(), 1..4)
    ) {
        let mut bytes = Vec::new();
        let mut ends = vec![0];
        for (index, record) in (1..).zip(&records) {
            encode_frame(1, index, record, SEED, &mut bytes);
            ends.push(bytes.len());
        }
        for len in 0..bytes.len() {
            let mut reader = FrameReader::new(&bytes[..len], SEED);
            let mut last = 0;
            let stopped = loop {
                match reader.next_frame() {
                    Ok(frame) => last = frame.end,
                    Err(stopped) => break stopped,
                }
            };
            let sound = *ends.iter().filter(|end| **end <= len).max().unwrap();
            prop_assert_eq!(last, sound);
            let zeroes = bytes[sound..len].iter().all(|byte| *byte == 0);
            prop_assert_eq!(stopped == FrameEnd::Clean, zeroes, "cut at {}", len);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut reader = FrameReader::new(&bytes, SEED);
        while reader.next_frame().is_ok() {}
        find_valid_frame_after(&bytes, 0, SEED);
        peek_store(&bytes);
    }

    #[test]
    fn any_body_under_a_good_checksum_is_read_or_refused(
        kind in 0u8..20, fields in proptest::collection::vec(prop_oneof![0u8..3, any::<u8>()], 0..90)
    ) {
        let mut bytes = vec![0; 8];
        bytes.extend_from_slice(&[1; 16]);
        bytes.push(kind);
        bytes.extend_from_slice(&fields);
        let length = u32::try_from(bytes.len()).unwrap();
        let crc = frame_crc(SEED, length, &bytes[8..]);
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        if let Ok(frame) = FrameReader::new(&bytes, SEED).next_frame() {
            let mut state = with_topic(&[]);
            let before = state.clone();
            match state.apply(&frame.record) {
                Ok(()) => check(&state),
                Err(_) => prop_assert_eq!(&state, &before),
            }
            state.next_topic_id();
            prop_assert_eq!(applied(&state.snapshot()), state);
        }
    }

    #[test]
    fn a_sound_frame_behind_a_break_is_found(
        junk in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 1..120),
        record in any_record(), after in 0usize..40
    ) {
        let mut bytes = junk.clone();
        encode_frame(5, 6, &record, SEED, &mut bytes);
        bytes.resize(bytes.len() + after, 0);
        prop_assert_eq!(find_valid_frame_after(&bytes, 0, SEED), Some(junk.len()));
        prop_assert_eq!(find_valid_frame_after(&bytes, junk.len(), SEED), None);
    }

    #[test]
    fn a_snapshot_gives_the_state_it_was_taken_of(history in any_history()) {
        let state = applied(&history);
        let mut again = MetadataState::default();
        for record in state.snapshot() {
            prop_assert_eq!(again.apply(&record), Ok(()), "{:?}", record);
        }
        prop_assert_eq!(again, state);
    }
}

#[test]
fn an_unclean_opening_begins_a_new_reign_in_every_partition() {
    let mut state = applied(&new_store());
    for record in [
        topic(1, "a", &[&[0], &[1]]),
        topic(2, "b", &[&[2]]),
        MetadataRecord::Opened { clean: true },
        MetadataRecord::Opened { clean: false },
    ] {
        state.apply(&record).unwrap();
    }
    for (id, partition) in [(1, 0), (1, 1), (2, 0)] {
        let partition = state.partition(TopicId(id), partition).unwrap();
        assert_eq!(partition.leader_epoch, LeaderEpoch(1));
    }
}

#[test]
fn an_opening_is_refused_rather_than_an_epoch_used_twice() {
    let mut state = with_topic(&[leader(Some(0), u32::MAX, &[0])]);
    assert!(state.apply(&MetadataRecord::Opened { clean: false }).is_err());
    assert!(state.apply(&MetadataRecord::Opened { clean: true }).is_ok());
}

#[test]
fn a_name_keeps_its_id_and_its_epoch_only_rises() {
    let named = |number, epoch| MetadataRecord::ProducerNamed {
        name: "meter".to_owned(),
        id: ProducerId(ProducerId::NAMED | number),
        epoch: ProducerEpoch(epoch),
    };
    let mut state = with_topic(&[MetadataRecord::ProducerIdBlock { next: 9 }, named(3, 0)]);
    for (record, fits) in
        [(named(3, 0), false), (named(4, 1), false), (named(3, 2), true), (named(3, 1), false)]
    {
        assert_eq!(state.apply(&record).is_ok(), fits, "{record:?}");
    }
    let held = state.named_producer("meter");
    assert_eq!(held, Some((ProducerId(ProducerId::NAMED | 3), ProducerEpoch(2))));
    assert_eq!(state.named_producer("other"), None);
    let plain = MetadataRecord::ProducerNamed {
        name: "plain".to_owned(),
        id: ProducerId(ProducerId::GIVEN | 5),
        epoch: ProducerEpoch(0),
    };
    assert!(state.apply(&plain).is_err(), "an id that can be forgotten is no name's");
}

#[test]
fn each_disk_that_failed_a_flush_is_remembered_until_it_is_cleared_and_at_its_lowest_offset() {
    let suspects = |changes: &[MetadataRecord]| {
        let state = with_topic(changes);
        let partition = state.partition(TopicId(1), 0).unwrap();
        partition.suspects.iter().map(|(disk, durable)| (disk.0, durable.0)).collect::<Vec<_>>()
    };
    assert_eq!(suspects(&[suspect(0, 5), suspect(2, 3)]), [(0, 5), (2, 3)]);
    assert_eq!(suspects(&[suspect(0, 5), suspect(0, 9), suspect(0, 4)]), [(0, 4)]);
    assert_eq!(suspects(&[suspect(0, 5), suspect(2, 3), cleared(0)]), [(2, 3)]);
    assert_eq!(suspects(&[suspect(0, 5), cleared(0), suspect(0, 9)]), [(0, 9)]);
}

#[test]
fn a_new_leader_needs_a_new_epoch_and_to_be_in_sync() {
    for (changes, next, fits) in [
        (vec![], leader(Some(0), 0, &[0, 1]), true),
        (vec![], leader(Some(1), 0, &[0, 1]), false),
        (vec![], leader(Some(1), 1, &[1]), true),
        (vec![], leader(Some(1), 1, &[0, 2]), false),
        (vec![], leader(Some(0), 0, &[0, 0]), false),
        (vec![], leader(Some(0), 0, &[0, 7]), false),
        (vec![], leader(None, 0, &[0]), true),
        (vec![leader(Some(1), 4, &[1])], leader(Some(1), 3, &[1]), false),
        (vec![leader(None, 4, &[1])], leader(Some(1), 4, &[1]), false),
        (vec![leader(None, 4, &[1])], leader(Some(1), 5, &[1]), true),
    ] {
        assert_eq!(with_topic(&changes).apply(&next).is_ok(), fits, "{changes:?}, then {next:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let id = TopicId(1);
    let config = |count| TopicConfig::new().partitions(count);
    let twice = MetadataRecord::TopicCreated {
        id: TopicId(2),
        name: "b".into(),
        config: config(2),
        replicas: vec![vec![DiskId(0)]],
    };
    let added = |disks: &[u16]| MetadataRecord::PartitionsAdded {
        id,
        replicas: vec![disks.iter().copied().map(DiskId).collect()],
    };
    let gone = |id, name: &str| MetadataRecord::TopicGone { id: TopicId(id), name: name.into() };
    for refused in [
        MetadataRecord::StoreCreated { store: StoreId(9), format: 1 },
        MetadataRecord::DiskAdded { disk: DiskId(0), uuid: 1, incarnation: 1 },
        topic(2, "a", &[&[0]]),
        topic(1, "b", &[&[0]]),
        topic(u64::MAX, "b", &[&[0]]),
        topic(2, "../b", &[&[0]]),
        topic(2, "b", &[]),
        topic(2, "b", &[&[]]),
        topic(2, "b", &[&[3]]),
        topic(2, "b", &[&[0, 0]]),
        twice,
        added(&[]),
        added(&[3]),
        MetadataRecord::PartitionsAdded { id, replicas: vec![] },
        MetadataRecord::TopicAltered { id, config: config(2) },
        MetadataRecord::TopicDeleted { id: TopicId(2) },
        MetadataRecord::TopicRemoved { id },
        MetadataRecord::LogStartRaised { id, partition: 1, offset: Offset(1) },
        suspect(3, 0),
        cleared(0),
        MetadataRecord::Counters { next_topic: u64::MAX },
        gone(1, "a"),
        gone(u64::MAX, "b"),
        gone(2, "b/../../c"),
    ] {
        let mut state = with_topic(&[]);
        assert!(state.apply(&refused).is_err(), "{refused:?}");
        assert_eq!(state, with_topic(&[]));
    }
    let first = MetadataState::default().apply(&MetadataRecord::Opened { clean: true });
    assert!(first.is_err(), "before the store's creation");
}

#[test]
fn a_topic_that_the_state_takes_fits_a_frame_and_a_larger_one_is_refused() {
    let mut state = applied(&new_store());
    let mut add = |count: usize| {
        let replicas = vec![vec![DiskId(0), DiskId(1), DiskId(2)]; count];
        state.apply(&MetadataRecord::PartitionsAdded { id: TopicId(1), replicas })
    };
    assert!(add(1).is_err(), "there is no topic");
    state.apply(&topic(1, "a", &[&[0]])).unwrap();
    let mut add = |count: usize| {
        let replicas = vec![vec![DiskId(0), DiskId(1), DiskId(2)]; count];
        state.apply(&MetadataRecord::PartitionsAdded { id: TopicId(1), replicas })
    };
    assert!(add(PARTITIONS_MAX).is_err());
    assert!(add(PARTITIONS_MAX - 1).is_ok());
    let mut bytes = Vec::new();
    for record in state.snapshot() {
        encode_frame(1, 1, &record, SEED, &mut bytes);
    }
    let disks = (0..100).map(DiskId).collect::<Vec<_>>();
    let many = std::iter::repeat_n(disks.as_slice(), PARTITIONS_MAX);
    assert!(fitting_count(many).is_err(), "200 MB of replicas");
}

#[test]
fn ids_are_not_used_twice_even_when_a_topic_and_its_files_are_gone() {
    let deleted = MetadataRecord::TopicDeleted { id: TopicId(1) };
    let state = with_topic(std::slice::from_ref(&deleted));
    assert_eq!(state.deleted_topics().collect::<Vec<_>>(), [(TopicId(1), "a")]);
    assert_eq!(applied(&state.snapshot()).next_topic_id(), TopicId(2));
    let state = with_topic(&[deleted, MetadataRecord::TopicRemoved { id: TopicId(1) }]);
    assert_eq!(state.deleted_topics().count(), 0);
    assert_eq!(applied(&state.snapshot()).next_topic_id(), TopicId(2));
}

#[test]
fn numbers_that_nothing_counts_so_far_are_refused() {
    let (id, partition, disk) = (TopicId(1), 0, DiskId(0));
    let led = |start, high_watermark| MetadataRecord::LeaderChanged {
        id,
        partition,
        leader: Some(disk),
        epoch: LeaderEpoch(1),
        isr: vec![disk],
        eligible: Vec::new(),
        start,
        high_watermark,
    };
    let is_read = |term, index, record: &MetadataRecord| {
        let mut bytes = Vec::new();
        encode_frame(term, index, record, SEED, &mut bytes);
        FrameReader::new(&bytes, SEED).next_frame().is_ok()
    };
    for (offset, sound) in [(Offset::MAX, true), (Offset(Offset::MAX.0 + 1), false)] {
        for record in [
            MetadataRecord::LogStartRaised { id, partition, offset },
            MetadataRecord::ReplicaSuspect { id, partition, disk, durable: offset },
            led(Some(offset), Offset(0)),
            led(None, offset),
        ] {
            assert_eq!(is_read(1, 1, &record), sound, "{record:?}");
        }
    }
    let opened = MetadataRecord::Opened { clean: true };
    let last = COUNT_MAX - 1;
    assert!(is_read(last, last, &opened));
    assert!(!is_read(COUNT_MAX, 1, &opened) && !is_read(1, COUNT_MAX, &opened));
    let mut state = with_topic(&[]);
    for incarnation in [COUNT_MAX, u64::MAX] {
        let record = MetadataRecord::DiskAdded { disk, uuid: 1, incarnation };
        assert!(state.apply(&record).is_err());
        assert!(state.apply(&MetadataRecord::ProducerIdBlock { next: incarnation }).is_err());
    }
}

#[test]
fn the_store_is_known_from_its_first_frame_alone() {
    let store = StoreId(0x1234_5678_9abc_def0);
    let seed = crc32fast::hash(&store.0.to_le_bytes());
    let mut bytes = Vec::new();
    encode_frame(1, 1, &MetadataRecord::StoreCreated { store, format: 1 }, seed, &mut bytes);
    assert_eq!(peek_store(&bytes), Some(store));
    bytes[30] ^= 1;
    assert_eq!(peek_store(&bytes), None);
}
