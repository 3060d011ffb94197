//! Opening one partition: its logs on all of their disks, who leads, and what each lacks.
//!
//! Every replica's log is opened with what its disk's last session left of it. Who leads is taken from the metadata, or
//! elected; what the leader's log lacks it gets from the others, and the others are told where they part from it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::config::TopicConfig;
use crate::error::{Error, Result};
use crate::log::{Evidence, Log, Loss, Marks, Recovered, Repair};
use crate::partition::{Core, CoreParts, EventKind, Proposal, Reign, Replica};
use crate::protocol::metadata::{MetadataRecord, PartitionState};
use crate::protocol::replication::{
    Candidate, EpochHistory, FollowerStart, Progress, elect, eligible_after,
};
use crate::types::{DiskId, Flush, LeaderEpoch, Offset, StorageMode, TopicId, TopicPartition};

use super::disks::{LastStop, StoreDisk};
use super::session::LogEnd;
use super::{Shared, Slot, Topic};

impl Shared {
    /// The partition's core; its logs are opened if it is not in use yet.
    pub(super) fn open_core(&self, topic: &Topic, slot: &Slot) -> Result<Arc<Core>> {
        let mut core = slot.core.lock();
        if let Some(core) = &*core {
            return Ok(Arc::clone(core));
        }
        self.check_open()?;
        let (opened, _) = self.recover(topic, slot).map_err(Error::of_others)?;
        *core = Some(Arc::clone(&opened));
        // A disk that was stopped meanwhile was stopped without it.
        opened.fence_left_behind();
        if topic.is_in_doubt.load(Ordering::Acquire) {
            opened.refuse_appends();
        }
        self.look_at_transactions_of(&opened);
        // Closed meanwhile: the close waits for the slot, and leaves what it finds here then as it is.
        if let Err(closed) = self.check_open() {
            opened.close();
            return Err(closed);
        }
        Ok(opened)
    }

    /// Opens a partition's logs with everything that is known of them. Returns the bytes scanned.
    pub(super) fn recover(&self, topic: &Topic, slot: &Slot) -> Result<(Arc<Core>, u64)> {
        let partition = &slot.partition;
        let number = partition.partition();
        let config = Arc::clone(&*topic.config.read());
        let mut described = self
            .metadata
            .lock()
            .state()
            .partition(topic.id, number)
            .cloned()
            .ok_or_else(|| Error::UnknownTopicOrPartition { partition: partition.clone() })?;
        if let Some(shown) = self.last_shown(topic, partition, &described) {
            described.high_watermark = described.high_watermark.max(shown);
        }
        let alone = described.replicas.len() == 1;
        let (mut found, mut damages) = (Vec::new(), Vec::new());
        let mut scanned_bytes = 0;
        for id in &described.replicas {
            let Some(disk) = self.online_disk(*id) else { continue };
            match self.open_replica(topic, partition, &disk, &described, &config, true) {
                Ok((recovered, damaged)) => {
                    scanned_bytes += recovered.scanned_bytes;
                    damages.extend(damaged.into_iter().map(|offset| (disk.id, offset)));
                    found.push((disk, recovered.log));
                }
                Err(error) if alone => return Err(error),
                Err(error) => self.replica_failed(partition, &disk, &error),
            }
        }
        // One that was lost meanwhile.
        found.retain(|(disk, _)| disk.is_online());
        let mut unrepaired = Vec::new();
        let (reign, leader) = if alone && described.stale.is_empty() {
            let leader = found.first().map(|(disk, _)| disk.id);
            self.settle_start(topic, partition, &described, leader, &mut found, &mut damages)?;
            (reign_of(&described), leader)
        } else {
            let (logs, bad) = (&mut found, &mut damages);
            let chosen = self.choose_leader(topic, partition, &described, &config, logs, bad)?;
            unrepaired = self.repair_all(partition, &mut found, &damages);
            if let Some(leader) = chosen.1 {
                let has_all =
                    |disk| described.isr.contains(&disk) || described.eligible.contains(&disk);
                self.tell_leader(partition, leader, &chosen.0.history, has_all, &mut found);
                self.forget_what_is_past(partition, leader, has_all, &mut found);
            }
            chosen
        };
        let Some(at) = found.iter().position(|(disk, _)| Some(disk.id) == leader) else {
            let absent = described.replicas.first().copied().unwrap_or_default();
            return Err(if alone && self.online_disk(absent).is_none() {
                Error::MissingDisk { disk: absent, path: self.home.clone() }
            } else {
                Error::NoLeader { partition: partition.clone() }
            });
        };
        let (disk, mut log) = found.remove(at);
        log.set_epoch(reign.epoch);
        if self.options.mode == StorageMode::Write {
            // What an earlier session showed, nobody shows any more: it would be believed. One that stays shows less.
            let _ = Marks::forget(log.place());
        }
        let has_records = log.end() > log.reader().log_start();
        let (leads, has_page) = (disk.id, has_records || Marks::peek(log.place()).is_some());
        let leading = replica(&disk, None);
        let mut followers: Vec<_> =
            found.into_iter().map(|(disk, log)| replica(&disk, Some(log))).collect();
        for id in &described.replicas {
            if *id != leading.disk && !followers.iter().any(|follower| follower.disk == *id) {
                // Its disk is away; when it comes back, the replica is here.
                let disk = self.disk(*id);
                followers.push(disk.map_or_else(
                    || Replica::new(*id, Arc::default(), Arc::default(), None),
                    |disk| replica(&disk, None),
                ));
            }
        }
        let core = Core::new(CoreParts {
            topic: topic.id,
            partition: partition.clone(),
            reign,
            log,
            leading,
            followers,
            settings: self.core_settings(&config),
            clock: self.clock.clone(),
            fork: Arc::clone(&self.fork),
            events: Arc::clone(&self.events),
            control: Arc::clone(&self.control),
            background: self.options.background,
            show_marks: self.options.mode != StorageMode::Write,
            append_timeout: self.options.append_timeout,
        });
        for (disk, offset) in unrepaired {
            core.repair_later(disk, offset);
            if let Some(worked) = self.disk(disk) {
                core.ask_for_attention_on(disk, &worked.attention);
            }
        }
        if has_page {
            // It says how far the log could be read before; an append, which would renew it, may be long in coming.
            core.make_page(leads);
        }
        Ok((core, scanned_bytes))
    }

    /// How far the last leader let be read when its process died. The metadata know that of the beginning of its reign, and
    /// too few replicas to acknowledge anything would leave it there.
    fn last_shown(
        &self,
        topic: &Topic,
        partition: &TopicPartition,
        described: &PartitionState,
    ) -> Option<Offset> {
        let disk = self.online_disk(described.leader?)?;
        let is_known = disk.same_boot && !disk.is_stale();
        let place = is_known.then(|| self.place(topic, partition, &disk.disk))?;
        Marks::peek(&place).map(|marks| marks.high_watermark)
    }

    /// Opens the log of one replica; `first`: for the first time since its disk came into service, so that
    /// what the disk's last session left holds. Also returns where it is damaged.
    pub(super) fn open_replica(
        &self,
        topic: &Topic,
        partition: &TopicPartition,
        disk: &Arc<StoreDisk>,
        described: &PartitionState,
        config: &Arc<TopicConfig>,
        first: bool,
    ) -> Result<(Recovered, Vec<Offset>)> {
        let place = self.place(topic, partition, &disk.disk);
        let suspect = described.suspects.get(&disk.id).copied();
        let log = (topic.id, partition.partition());
        if !first {
            // It follows.
            self.last_stop(disk, log).settle_start()?;
        }
        let (clean, LogEnd { end: proven, producers, start }) = {
            let session = disk.session.lock();
            let end = session.ends.get(&log).copied().unwrap_or_default();
            // After an unclean stop everything was recovered when the store was opened; a log that is
            // first used later has no files, or had none then.
            (first && session.clean && suspect.is_none() && !disk.is_stale(), end)
        };
        let shown = if disk.same_boot && !disk.is_stale() {
            Marks::peek(&place).and_then(|marks| marks.log_end)
        } else {
            Marks::forget(&place)
                .map_err(|error| place.io_error("marks", "remove", error))
                .map(|()| None)?
        };
        // Where another is trusted to have it, the tail is copied from there; else it is all there is, as of one replica.
        let trusted = |other: &DiskId| *other != disk.id && !described.suspects.contains_key(other);
        let replicated = described.isr.iter().chain(&described.eligible).any(trusted);
        let mut recovered = Log::open(
            place,
            self.core_settings(config).log,
            Evidence {
                // Of a disk that lacks what it once held, no session tells.
                proven_end: proven.max(shown.unwrap_or_default()),
                clean,
                same_boot: disk.same_boot,
                log_start: described.log_start.max(start),
                rewrite: config.flush != Flush::Os || suspect.is_some(),
                epoch: described.leader_epoch,
                // The one that led last sealed the batches of its reign, and copied those before; where there never
                // was another, there is no history.
                sealed_since: (described.led_by == Some(disk.id)).then(|| {
                    let last = described.history.reigns().last();
                    last.map_or(LeaderEpoch(0), |reign| reign.epoch)
                }),
                now: self.clock.now(),
                repair: true,
                producers: producers || !clean,
                mapped: !first,
            },
        )?;
        recovered.log.set_witness(Arc::new(self.last_stop(disk, log)));
        let mut damaged = Vec::new();
        for loss in std::mem::take(&mut recovered.losses) {
            if let Loss::Damaged { from, .. } = &loss {
                damaged.push(*from);
            }
            self.events.push(self.clock.now(), event_of(partition, loss));
        }
        if let Some(durable) = suspect {
            if replicated {
                // Its tail is copied anew, into new files, from a replica that flushed it.
                recovered.log.truncate_copy(durable, self.clock.now())?;
            }
            self.metadata.lock().commit(&MetadataRecord::ReplicaCleared {
                id: topic.id,
                partition: partition.partition(),
                disk: disk.id,
            })?;
        }
        Ok((recovered, damaged))
    }

    /// Who leads a partition with several replicas: the one that did, after a clean stop; else the best of
    /// those that may. Cuts the others' logs to what it has.
    fn choose_leader(
        &self,
        topic: &Topic,
        partition: &TopicPartition,
        described: &PartitionState,
        config: &TopicConfig,
        found: &mut Vec<(Arc<StoreDisk>, Log)>,
        damages: &mut Vec<(DiskId, Offset)>,
    ) -> Result<(Reign, Option<DiskId>)> {
        let now = self.clock.now();
        let mut reign = reign_of(described);
        let mut failed = Vec::new();
        let mut candidates = Vec::new();
        for (disk, log) in found.iter_mut() {
            let looked = log.agree_alone(&reign.history, now).and_then(|_| log.last_epoch());
            let last_epoch = match looked {
                Ok(epoch) => epoch.unwrap_or_default(),
                Err(error) => {
                    failed.push((disk.id, error));
                    continue;
                }
            };
            candidates.push(Candidate {
                disk: disk.id,
                in_sync: described.isr.contains(&disk.id),
                eligible: described.eligible.contains(&disk.id),
                suspect: described.suspects.contains_key(&disk.id) && described.isr.len() > 1
                    || has_shrunk(described, config, disk, log.end()),
                sound: !log.lacks_past() && !damages.iter().any(|(damaged, _)| *damaged == disk.id),
                last_epoch,
                end: log.end(),
            });
        }
        self.leave_out(partition, found, failed);
        let strayed = self.has_strayed();
        let clean =
            !strayed && found.iter().all(|(disk, _)| disk.session.lock().clean && !disk.is_stale());
        let best = candidates.iter().filter(|c| c.in_sync).map(|c| (c.last_epoch, c.end)).max();
        let stays = described.leader.filter(|leader| {
            let same = candidates.iter().find(|candidate| candidate.disk == *leader);
            let whole = same.is_some_and(|same| best <= Some((same.last_epoch, same.end)));
            clean
                && whole
                && described.isr.iter().all(|disk| found.iter().any(|(f, _)| f.id == *disk))
        });
        // All replicas have failed, and all are there, as they were: no more can be hoped for.
        let no_better = described.stale.is_empty()
            && described.isr.is_empty()
            && described.eligible.is_empty()
            && found.len() == described.replicas.len();
        let leader = match stays {
            Some(leader) => Some(leader),
            None => {
                let unclean = config.unclean_leader_election || no_better;
                let Some(elected) = elect(&candidates, unclean) else {
                    return Ok((reign, None));
                };
                let high_watermark = described.high_watermark.min(elected.end);
                // Of what could be read, a power loss may have taken some: it is in sync no more, lest it lead without that.
                let short = |c: &&Candidate| c.end < high_watermark;
                let lacks = |disk: DiskId| candidates.iter().filter(short).any(|c| c.disk == disk);
                let without_short =
                    |disks: &[DiskId]| disks.iter().copied().filter(|disk| !lacks(*disk)).collect();
                let (known_isr, known_eligible): (Vec<_>, Vec<_>) =
                    (without_short(&described.isr), without_short(&described.eligible));
                let mut isr = vec![elected.disk];
                if elected.clean {
                    let stays = |c: &&Candidate| !c.suspect && c.disk != elected.disk;
                    let in_sync = candidates.iter().filter(|c| known_isr.contains(&c.disk));
                    isr.extend(in_sync.filter(stays).map(|c| c.disk));
                }
                let required =
                    usize::from(config.min_insync_replicas).clamp(1, described.replicas.len());
                // One that went on alone may have come further than the metadata know.
                let last_epoch = candidates.iter().map(|candidate| candidate.last_epoch).max();
                let last_epoch = described.leader_epoch.max(last_epoch.unwrap_or_default());
                // Those who had what is missing are away: how far it went, the metadata need not know.
                let missing = elected.end < described.high_watermark || !no_better;
                let lost = (!elected.clean && missing)
                    .then_some(elected.end..described.high_watermark.max(elected.end));
                let proposal = Proposal {
                    leader: Some(elected.disk),
                    epoch: LeaderEpoch(last_epoch.0.saturating_add(1)),
                    eligible: eligible_after(&known_isr, &known_eligible, &isr, required),
                    isr,
                    start: Some(elected.end),
                    high_watermark,
                    suspects: Vec::new(),
                    lost: lost.clone(),
                };
                self.make_first_page(described, config, found, &proposal);
                self.metadata
                    .lock()
                    .commit_all(&super::reigns::records_of(topic.id, partition, &proposal))?;
                reign.epoch = proposal.epoch;
                reign.history.begin(proposal.epoch, elected.end);
                reign.isr = proposal.isr;
                reign.eligible = proposal.eligible;
                reign.stale.retain(|disk| !reign.isr.contains(disk));
                reign.high_watermark = high_watermark;
                self.events.push(
                    now,
                    EventKind::LeaderChanged {
                        partition: partition.clone(),
                        leader: Some(elected.disk),
                        epoch: reign.epoch,
                        lost,
                    },
                );
                Some(elected.disk)
            }
        };
        self.settle_start(topic, partition, described, leader, found, damages)?;
        let leader_end = candidates.iter().find(|c| Some(c.disk) == leader).map(|c| c.end);
        let of_leader = found.iter().find(|(disk, _)| Some(disk.id) == leader && strayed);
        let of_leader = of_leader.map(|(_, log)| Arc::clone(log.reader()));
        let mut failed = Vec::new();
        for (disk, log) in found.iter_mut().filter(|(disk, _)| Some(disk.id) != leader) {
            let (own_end, place) = (log.end(), log.place());
            // A page that says how far a leader wrote must not be believed of a follower, which may be cut.
            let forgotten =
                Marks::forget(place).map_err(|error| place.io_error("marks", "remove", error));
            let leader_end = leader_end.unwrap_or_default();
            let compared = forgotten.and_then(|()| {
                of_leader.iter().try_for_each(|leader| log.agree_with(leader, leader_end, now))
            });
            match compared.and_then(|()| log.agree(&reign.history, leader_end, now)) {
                Ok(end) if strayed && end < own_end => {
                    let (partition, disk) = (partition.clone(), disk.id);
                    let offsets = end..own_end;
                    self.events.push(now, EventKind::GaveWay { partition, disk, offsets });
                }
                Ok(_) => {}
                Err(error) => failed.push((disk.id, error)),
            }
        }
        self.leave_out(partition, found, failed);
        Ok((reign, leader))
    }

    /// Makes the page of one that is to lead, before the metadata name it: a reader in another process would take
    /// all for readable that is in its files. It is a service to those: who cannot make it leads all the same.
    fn make_first_page(
        &self,
        described: &PartitionState,
        config: &TopicConfig,
        found: &mut [(Arc<StoreDisk>, Log)],
        proposal: &Proposal,
    ) {
        let others = described.replicas.iter().filter(|disk| Some(**disk) != proposal.leader);
        let followers: Vec<_> = others
            .map(|id| {
                let log = found.iter().find(|(disk, _)| disk.id == *id).map(|(_, log)| log);
                FollowerStart {
                    disk: *id,
                    end: log.map_or(Offset::ZERO, Log::end),
                    flushed: log.map_or(Offset::ZERO, Log::flushed_end),
                    in_sync: proposal.isr.contains(id),
                    online: log.is_some(),
                }
            })
            .collect();
        let leads = |disk: &StoreDisk| Some(disk.id) == proposal.leader;
        let Some((_, log)) = found.iter_mut().find(|(disk, _)| leads(disk)) else { return };
        // One that leads on has a page that readers look at; another's is of an earlier reign.
        let has_page = described.leader == proposal.leader && Marks::peek(log.place()).is_some();
        if self.options.mode == StorageMode::Write || has_page {
            return;
        }
        let (start, end) = (log.reader().log_start(), log.end());
        let mut progress = Progress::recovered(start, end, log.flushed_end());
        let (min_insync, high_watermark) = (config.min_insync_replicas, proposal.high_watermark);
        progress.begin_reign(true, end, high_watermark, min_insync, &followers, config.flush);
        let last_stable = if log.lacks_past() {
            start // what is open it has yet to be told
        } else {
            log.last_stable(progress.high_watermark())
        };
        let now = self.clock.now();
        let _ = Marks::create(log.place(), &progress, last_stable, Offset::ZERO, now);
    }

    /// Where a disk deleted records while it went on without the other: if it leads, they are deleted; else the leader may
    /// know other records at these offsets, and all that it has is copied from there.
    fn settle_start(
        &self,
        topic: &Topic,
        partition: &TopicPartition,
        described: &PartitionState,
        leader: Option<DiskId>,
        found: &mut Vec<(Arc<StoreDisk>, Log)>,
        damages: &mut Vec<(DiskId, Offset)>,
    ) -> Result<()> {
        let key = (topic.id, partition.partition());
        let starts = found.iter().map(|(disk, _)| (disk.id, disk.deleted_alone(key)));
        let starts: Vec<_> = starts.filter(|(_, start)| *start > described.log_start).collect();
        if starts.is_empty() || leader.is_none() {
            return Ok(());
        }
        let mut described = described.clone();
        if let Some((_, start)) = starts.iter().find(|(disk, _)| Some(*disk) == leader) {
            described.log_start = *start;
            let (id, partition, offset) = (key.0, key.1, *start);
            let raised = MetadataRecord::LogStartRaised { id, partition, offset };
            self.metadata.lock().commit(&raised)?;
        }
        let mut failed = Vec::new();
        let config = Arc::clone(&*topic.config.read());
        for at in (0..found.len()).rev() {
            let disk = Arc::clone(&found[at].0);
            let settled = self.last_stop(&disk, key).settle_start();
            if Some(disk.id) == leader {
                continue; // the metadata say it by now
            }
            // Two would write to the same files.
            drop(found.remove(at));
            damages.retain(|(damaged, _)| *damaged != disk.id);
            described.suspects.remove(&disk.id);
            let opened = settled.and_then(|()| {
                self.open_replica(topic, partition, &disk, &described, &config, true)
            });
            match opened {
                Ok((recovered, damaged)) => {
                    damages.extend(damaged.into_iter().map(|offset| (disk.id, offset)));
                    found.insert(at, (disk, recovered.log));
                }
                Err(error) => failed.push((disk.id, error)),
            }
        }
        self.leave_out(partition, found, failed);
        Ok(())
    }

    pub(super) fn last_stop(&self, disk: &Arc<StoreDisk>, log: (TopicId, u32)) -> LastStop {
        LastStop { disk: Arc::clone(disk), store: self.id, log }
    }

    /// Takes what one replica has lost from the others. What nobody has stays damaged. Returns what is to be tried again.
    fn repair_all(
        &self,
        partition: &TopicPartition,
        found: &mut [(Arc<StoreDisk>, Log)],
        damages: &[(DiskId, Offset)],
    ) -> Vec<(DiskId, Offset)> {
        let now = self.clock.now();
        let failed = |what: &str, error: &Error| {
            let partition = Some(partition.clone());
            let reason = format!("{what}: {error}");
            self.events.push(now, EventKind::BackgroundFailed { partition, reason });
        };
        let (mut repaired, mut left) = (Vec::new(), Vec::new());
        for (id, offset) in damages {
            let readers = found.iter().filter(|(disk, _)| disk.id != *id);
            let sources: Vec<_> = readers.map(|(_, log)| Arc::clone(log.reader())).collect();
            let Some((_, log)) = found.iter_mut().find(|(disk, _)| disk.id == *id) else {
                continue;
            };
            if *offset >= log.end() || *offset < log.reader().log_start() {
                continue;
            }
            match log.repair(*offset, &sources, now) {
                Ok(Repair::Done) => {
                    let path = log.place().full_path("");
                    self.events.push(now, EventKind::Repaired { path });
                    repaired.push(*id);
                }
                Ok(Repair::Sound | Repair::Nowhere) => {}
                Ok(Repair::NotNow) => left.push((*id, *offset)),
                Err(error) => {
                    failed("repairing a segment", &error);
                    left.push((*id, *offset));
                }
            }
        }
        for (_, log) in found.iter_mut().filter(|(disk, _)| repaired.contains(&disk.id)) {
            if let Err(error) = log.count_repaired(now) {
                failed("reading who wrote what was repaired", &error);
            }
        }
        left
    }

    /// A leader that cannot read who wrote some of its log asks a replica that knows, first those that `has_all` that was
    /// acknowledged: nobody is asked once it leads.
    fn tell_leader(
        &self,
        partition: &TopicPartition,
        leader: DiskId,
        history: &EpochHistory,
        has_all: impl Fn(DiskId) -> bool,
        found: &mut [(Arc<StoreDisk>, Log)],
    ) {
        let Some(at) = found.iter().position(|(disk, _)| disk.id == leader) else { return };
        let (before, rest) = found.split_at_mut(at);
        let Some(((_, log), after)) = rest.split_first_mut() else { return };
        let now = self.clock.now();
        let others = || before.iter().chain(&*after);
        let knowing = others().filter(|(disk, _)| has_all(disk.id));
        let doubtful = others().filter(|(disk, log)| !has_all(disk.id) && log.last_is_of(history));
        for (_, other) in knowing.chain(doubtful) {
            if !log.lacks_past() {
                return;
            }
            if let Err(error) = log.learn_producers(other, now) {
                let reason = format!("asking who wrote what is damaged: {error}");
                let partition = Some(partition.clone());
                self.events.push(now, EventKind::BackgroundFailed { partition, reason });
            }
        }
    }

    /// Who may lack or have more than was acknowledged, and has nothing left by which that would show, is told anew who wrote.
    fn forget_what_is_past(
        &self,
        partition: &TopicPartition,
        leader: DiskId,
        has_all: impl Fn(DiskId) -> bool,
        found: &mut Vec<(Arc<StoreDisk>, Log)>,
    ) {
        let mut failed = Vec::new();
        let doubtful = |disk: &StoreDisk| disk.id != leader && !has_all(disk.id);
        for (disk, log) in found.iter_mut().filter(|(disk, _)| doubtful(disk)) {
            if let Err(error) = log.forget_what_is_past() {
                failed.push((disk.id, error));
            }
        }
        self.leave_out(partition, found, failed);
    }

    /// Goes on without replicas that failed.
    fn leave_out(
        &self,
        partition: &TopicPartition,
        found: &mut Vec<(Arc<StoreDisk>, Log)>,
        failed: Vec<(DiskId, Error)>,
    ) {
        for (id, error) in failed {
            if let Some(disk) = self.disk(id) {
                self.replica_failed(partition, &disk, &error);
            }
            found.retain(|(disk, _)| disk.id != id);
        }
    }

    fn replica_failed(&self, partition: &TopicPartition, disk: &StoreDisk, error: &Error) {
        self.events.push(
            self.clock.now(),
            EventKind::ReplicaFenced {
                partition: partition.clone(),
                disk: disk.id,
                at_risk: Offset::ZERO..Offset::ZERO,
                cause: error.to_string(),
            },
        );
    }
}

/// A replica on `disk`.
pub(super) fn replica(disk: &StoreDisk, log: Option<Log>) -> Arc<Replica> {
    Replica::new(disk.id, Arc::clone(&disk.attention), Arc::clone(&disk.flushes), log)
}

/// Whether the last leader's log ends before its reign began although no power was lost since: a flush failed, which could not be
/// written down. It does not lead while another may have the rest.
fn has_shrunk(
    described: &PartitionState,
    config: &TopicConfig,
    disk: &StoreDisk,
    end: Offset,
) -> bool {
    let began = described.history.reigns().last().map_or(Offset::ZERO, |reign| reign.start);
    let mut others = described.isr.iter().chain(&described.eligible);
    // With `OnAck`, a reign may begin with records that wait in memory for their flush.
    config.flush != Flush::OnAck
        && disk.same_boot
        && described.leader == Some(disk.id)
        && end < began
        && others.any(|other| *other != disk.id)
}

fn reign_of(described: &PartitionState) -> Reign {
    Reign {
        epoch: described.leader_epoch,
        history: described.history.clone(),
        isr: described.isr.clone(),
        eligible: described.eligible.clone(),
        stale: described.stale.iter().copied().collect(),
        preference: described.replicas.clone(),
        high_watermark: described.high_watermark,
    }
}

fn event_of(partition: &TopicPartition, loss: Loss) -> EventKind {
    let partition = partition.clone();
    match loss {
        Loss::Cut { from, bytes, kept, reason } => {
            EventKind::TailCut { partition, from, bytes, kept, reason }
        }
        Loss::Damaged { from, to, path, reason } => {
            EventKind::Damaged { partition, offsets: from..to.max(from), path, reason }
        }
        Loss::Foreign { path } => EventKind::ForeignFile { path },
        Loss::ProducersForgotten { below } => EventKind::ProducersForgotten { partition, below },
    }
}
