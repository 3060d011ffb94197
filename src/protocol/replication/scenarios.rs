//! Small worlds of replicas: what the three machines decide together, from scripts and from chance.
//!
//! A replica's log is a row of (epoch, value). The world does what the shell does: it copies, cuts,
//! elects, makes decisions durable at once or, in a random run, later or never.

use std::convert::Infallible;
use std::time::Duration;

use crate::types::{DiskId, Flush, LeaderEpoch, Offset};

use super::{Candidate, EpochHistory, FollowerStart, Progress, elect, eligible_after};

const LAG: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Replica {
    log: Vec<(u32, u64)>,
    flushed: usize,
    online: bool,
}

struct World {
    replicas: Vec<Replica>,
    flush: Flush,
    min_insync: u16,
    unclean: bool,
    now: Duration,
    // What is durable in the metadata.
    leader: Option<usize>,
    epoch: u32,
    isr: Vec<DiskId>,
    eligible: Vec<DiskId>,
    history: EpochHistory,
    metadata_watermark: Offset,
    // What the leader knows.
    progress: Progress,
    /// Acknowledged with `All`: (offset, value).
    acknowledged: Vec<(usize, u64)>,
    read: Vec<u64>,
    next_value: u64,
    lost: bool,
}

impl World {
    fn new(disks: usize, min_insync: u16, flush: Flush) -> Self {
        let replicas = (0..disks).map(|_| Replica { online: true, ..Replica::default() }).collect();
        let all = (0..disks).map(disk).collect();
        let mut world = Self {
            replicas,
            flush,
            min_insync,
            unclean: false,
            now: Duration::ZERO,
            leader: None,
            epoch: 0,
            isr: all,
            eligible: Vec::new(),
            history: EpochHistory::default(),
            metadata_watermark: Offset(0),
            progress: Progress::recovered(Offset(0), Offset(0), Offset(0)),
            acknowledged: Vec::new(),
            read: Vec::new(),
            next_value: 0,
            lost: false,
        };
        world.elect();
        world
    }

    fn required(&self) -> usize {
        usize::from(self.min_insync).clamp(1, self.replicas.len())
    }

    fn elect(&mut self) {
        if let Some(leader) = self.leader {
            self.metadata_watermark = self.progress.high_watermark();
            if self.replicas[leader].online {
                return;
            }
        }
        self.leader = None;
        for at in 0..self.replicas.len() {
            let own = end(&self.replicas[at].log);
            self.cut(at, own);
        }
        let candidates: Vec<_> = (0..self.replicas.len())
            .filter(|at| self.replicas[*at].online)
            .map(|at| Candidate {
                disk: disk(at),
                in_sync: self.isr.contains(&disk(at)),
                eligible: self.eligible.contains(&disk(at)),
                suspect: false,
                sound: true,
                last_epoch: LeaderEpoch(self.replicas[at].log.last().map_or(0, |last| last.0)),
                end: end(&self.replicas[at].log),
            })
            .collect();
        let Some(elected) = elect(&candidates, self.unclean) else {
            return;
        };
        let leader = usize::from(elected.disk.0);
        self.lost |= !elected.clean;
        // In sync stay those that were and are there; an unclean leader is alone.
        let mut isr = vec![elected.disk];
        if elected.clean {
            isr.extend(self.isr.iter().filter(|disk| {
                **disk != elected.disk && self.replicas[usize::from(disk.0)].online
            }));
        }
        self.eligible = eligible_after(&self.isr, &self.eligible, &isr, self.required());
        self.isr = isr;
        self.epoch += 1;
        self.history.begin(LeaderEpoch(self.epoch), elected.end);
        self.leader = Some(leader);
        for at in 0..self.replicas.len() {
            if at != leader && self.replicas[at].online {
                self.agree(at);
            }
        }
        let (log_end, flushed) = (elected.end, Offset(self.replicas[leader].flushed as u64));
        self.progress = Progress::recovered(Offset(0), log_end, flushed);
        let starts: Vec<_> = (0..self.replicas.len())
            .filter(|at| *at != leader)
            .map(|at| FollowerStart {
                disk: disk(at),
                end: end(&self.replicas[at].log),
                flushed: Offset(self.replicas[at].flushed as u64),
                in_sync: self.isr.contains(&disk(at)),
                online: self.replicas[at].online,
            })
            .collect();
        let known = self.metadata_watermark;
        self.progress.begin_reign(true, log_end, known, self.min_insync, &starts, self.flush);
        self.check();
    }

    /// A follower cuts what the leader does not have.
    fn agree(&mut self, at: usize) {
        let leader = self.leader.expect("somebody leads");
        self.cut(at, end(&self.replicas[leader].log));
        let follower = &self.replicas[at].log;
        assert_eq!(follower[..], self.replicas[leader].log[..follower.len()], "INV-03, INV-14");
    }

    fn cut(&mut self, at: usize, leader_end: Offset) {
        let log = &self.replicas[at].log;
        let before = |end: Offset| {
            let last = usize::try_from(end.0).unwrap().checked_sub(1);
            let offsets = |last| Offset(last as u64)..Offset(last as u64 + 1);
            Ok::<_, Infallible>(last.map(|last| (LeaderEpoch(log[last].0), offsets(last))))
        };
        let Ok(agreed) = self.history.agreed_end(leader_end, end(log), before);
        let replica = &mut self.replicas[at];
        replica.log.truncate(usize::try_from(agreed.0).unwrap());
        replica.flushed = replica.flushed.min(replica.log.len());
    }

    fn append(&mut self) {
        let Some(leader) = self.leader else { return };
        let value = self.next_value;
        self.next_value += 1;
        self.replicas[leader].log.push((self.epoch, value));
        self.progress.on_appended(end(&self.replicas[leader].log));
        self.progress.advance(self.flush);
        self.check();
    }

    fn follow(&mut self, at: usize) {
        let Some(leader) = self.leader.filter(|leader| *leader != at) else { return };
        if !self.replicas[at].online {
            return;
        }
        let line = self.replicas[leader].log.clone();
        let replica = &mut self.replicas[at];
        let from = replica.log.len();
        replica.log.extend_from_slice(&line[from..]);
        self.progress.on_followed(disk(at), end(&self.replicas[at].log), self.flush);
        self.check();
    }

    fn flush(&mut self, at: usize) {
        let replica = &mut self.replicas[at];
        if !replica.online {
            return;
        }
        replica.flushed = replica.log.len();
        let flushed = end(&replica.log);
        match self.leader {
            Some(leader) if leader == at => self.progress.on_flushed(flushed, self.flush),
            Some(_) => self.progress.on_follower_flushed(disk(at), flushed, self.flush),
            None => {}
        }
        self.check();
    }

    fn crash(&mut self, at: usize) {
        if !std::mem::replace(&mut self.replicas[at].online, false) {
            return;
        }
        match self.leader {
            Some(leader) if leader == at => {
                self.metadata_watermark = self.progress.high_watermark();
                self.elect();
            }
            Some(_) if self.progress.on_failed(disk(at), Flush::Os) => self.commit(),
            _ => {}
        }
    }

    fn come_back(&mut self, at: usize) {
        if std::mem::replace(&mut self.replicas[at].online, true) {
            return;
        }
        if self.leader.is_none() {
            return self.elect();
        }
        self.agree(at);
        let (log_end, flushed) =
            (end(&self.replicas[at].log), Offset(self.replicas[at].flushed as u64));
        self.progress.on_returned(disk(at), log_end, flushed);
    }

    fn tick(&mut self, span: Duration) {
        self.now += span;
        if self.leader.is_some() && self.progress.tick(self.now, LAG, self.flush) {
            self.commit();
        }
        self.check();
    }

    /// The metadata take the proposal.
    fn commit(&mut self) {
        let Some(followers) = self.progress.proposal() else { return };
        let leader = self.leader.expect("a leader proposes");
        let isr: Vec<_> = std::iter::once(disk(leader)).chain(followers.iter().copied()).collect();
        self.eligible = eligible_after(&self.isr, &self.eligible, &isr, self.required());
        self.metadata_watermark = self.progress.high_watermark();
        self.isr = isr;
        self.progress.on_isr(&followers, self.flush);
        self.check();
    }

    /// What may be read was read, and what is below the watermark of a large enough set acknowledged.
    fn check(&mut self) {
        let Some(leader) = self.leader else { return };
        let log = &self.replicas[leader].log;
        let watermark = usize::try_from(self.progress.high_watermark().0).unwrap();
        assert!(watermark <= log.len(), "INV-01");
        if self.lost {
            // An unclean leader was asked for: what it lacks is gone, and known to be.
            self.read.truncate(log.len());
            self.acknowledged.retain(|(at, value)| log.get(*at).is_some_and(|(_, v)| v == value));
            self.read = log[..self.read.len()].iter().map(|(_, value)| *value).collect();
            self.lost = false;
        }
        for (at, (read, (_, value))) in self.read.iter().zip(log).enumerate() {
            assert_eq!(read, value, "INV-02: what was read changed at {at}");
        }
        self.read.extend(log.iter().take(watermark).skip(self.read.len()).map(|(_, value)| *value));
        for (at, value) in &self.acknowledged {
            assert_eq!(log.get(*at).map(|(_, value)| value), Some(value), "INV-02: lost {at}");
        }
        if usize::from(self.progress.in_sync()) >= self.required() {
            let known = self.acknowledged.len();
            let newly = log.iter().enumerate().take(watermark).skip(known);
            self.acknowledged.extend(newly.map(|(at, (_, value))| (at, *value)));
        }
        for (at, replica) in self.replicas.iter().enumerate() {
            let in_sync = at == leader || self.progress.is_in_sync(disk(at));
            if in_sync {
                assert!(self.isr.contains(&disk(at)));
                assert!(replica.log.len() >= watermark, "INV-02: {at} lacks what can be read");
            }
        }
    }

    fn run(script: &str) {
        let mut world: Option<Self> = None;
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<_> = line.split_whitespace().collect();
            let number = |at: usize| words[at].parse::<u64>().unwrap();
            let at = |at: usize| words[at].parse::<usize>().unwrap();
            if let ["disks", ..] = words[..] {
                let flush = if words[4] == "durable" { Flush::OnAck } else { Flush::Os };
                world = Some(Self::new(at(1), words[3].parse().unwrap(), flush));
                continue;
            }
            let world = world.as_mut().expect("a script begins with its disks");
            match words[0] {
                "append" => (0..number(1)).for_each(|_| world.append()),
                "follow" => world.follow(at(1)),
                "flush" => world.flush(at(1)),
                "crash" => world.crash(at(1)),
                "return" => world.come_back(at(1)),
                "tick" => world.tick(Duration::from_secs(number(1))),
                "unclean" => {
                    world.unclean = true;
                    world.elect();
                }
                "hw" => assert_eq!(world.progress.high_watermark().0, number(1), "{line}"),
                "end" => assert_eq!(world.replicas[at(1)].log.len() as u64, number(2), "{line}"),
                "leader" => {
                    let leader = world.leader.map_or("none".to_owned(), |at| at.to_string());
                    assert_eq!(leader, words[1], "{line}");
                }
                "isr" => {
                    let mut isr: Vec<_> = world.isr.iter().map(|disk| disk.0).collect();
                    isr.sort_unstable();
                    let expected: Vec<u16> =
                        words[1..].iter().map(|w| w.parse().unwrap()).collect();
                    assert_eq!(isr, expected, "{line}");
                }
                other => panic!("no such word: {other}"),
            }
        }
    }
}

fn disk(at: usize) -> DiskId {
    DiskId(u16::try_from(at).unwrap())
}

fn end(log: &[(u32, u64)]) -> Offset {
    Offset(log.len() as u64)
}

#[test]
fn kafka_1211_a_follower_that_returns_keeps_what_was_acknowledged() {
    World::run(
        "disks 2 min 1 os
         append 3
         follow 1
         hw 3
         crash 1
         isr 0
         append 2
         hw 5
         return 1
         follow 1
         tick 1
         isr 0 1
         crash 0
         leader 1
         end 1 5
         hw 5",
    );
}

#[test]
fn kip_101_the_old_leaders_own_tail_is_cut_and_nothing_else() {
    World::run(
        "disks 3 min 2 os
         append 4
         follow 1
         follow 2
         hw 4
         append 3
         follow 1
         crash 0
         leader 1
         end 1 7
         append 1
         follow 2
         hw 8
         return 0
         end 0 7
         follow 0
         tick 1
         isr 1 2
         flush 0
         tick 1
         isr 0 1 2
         end 0 8",
    );
}

#[test]
fn kip_279_two_fail_overs_in_a_row() {
    World::run(
        "disks 3 min 1 os
         append 2
         follow 1
         follow 2
         append 2
         crash 0
         leader 1
         append 1
         crash 1
         leader 2
         end 2 2
         append 3
         return 0
         end 0 2
         return 1
         end 1 2
         follow 0
         follow 1
         tick 1
         isr 2
         flush 0
         flush 1
         tick 1
         isr 0 1 2
         hw 5",
    );
}

#[test]
fn repl_33_the_watermark_stands_under_min_insync() {
    World::run(
        "disks 3 min 2 os
         append 2
         follow 1
         hw 0
         crash 2
         isr 0 1
         hw 2
         crash 1
         isr 0
         append 3
         hw 2
         return 1
         follow 1
         tick 1
         isr 0 1
         hw 5",
    );
}

#[test]
fn kip_966_the_last_in_sync_replica_fails_and_one_that_lacks_nothing_leads() {
    World::run(
        "disks 3 min 2 durable
         append 2
         flush 0
         follow 1
         follow 2
         flush 1
         flush 2
         hw 2
         crash 2
         crash 1
         isr 0
         append 4
         flush 0
         hw 2
         crash 0
         leader none
         return 1
         leader 1
         end 1 2
         hw 2
         return 0
         end 0 2",
    );
}

#[test]
fn repl_22_nobody_leads_who_left_while_the_watermark_went_on() {
    World::run(
        "disks 2 min 1 os
         append 1
         follow 1
         crash 1
         append 1
         hw 2
         crash 0
         leader none
         return 1
         leader none
         unclean
         leader 1
         end 1 1",
    );
}

#[test]
fn repl_13_a_stuck_follower_leaves_after_the_lag_and_comes_back() {
    World::run(
        "disks 2 min 1 os
         append 5
         hw 0
         tick 9
         isr 0 1
         tick 11
         isr 0
         hw 5
         follow 1
         tick 1
         isr 0 1",
    );
}

#[test]
fn durable_acknowledgements_wait_for_every_flush() {
    World::run(
        "disks 3 min 2 durable
         append 1
         follow 1
         follow 2
         flush 0
         flush 1
         hw 0
         flush 2
         hw 1",
    );
}

#[test]
fn inv_01_to_04_and_14_hold_in_random_worlds() {
    let seed: u64 =
        std::env::var("ONCELOG_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let rounds = if cfg!(miri) { 3 } else { 2_000 };
    for round in seed..seed.saturating_add(rounds) {
        let mut random = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut below = |bound: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            usize::try_from(random % bound).unwrap()
        };
        let disks = 1 + below(3);
        let min_insync = u16::try_from(1 + below(3)).unwrap();
        let flush = [Flush::Os, Flush::OnAck][below(2)];
        let run = std::panic::AssertUnwindSafe(|| {
            let mut world = World::new(disks, min_insync, flush);
            for _ in 0..200 {
                let at = below(disks as u64);
                match below(12) {
                    0..=3 => world.append(),
                    4..=6 => world.follow(at),
                    7..=8 => world.flush(at),
                    9 if below(3) == 0 => world.crash(at),
                    10 => world.come_back(at),
                    _ => world.tick(Duration::from_secs(below(6) as u64)),
                }
            }
            // When the faults end, all are in sync again and equal.
            for at in 0..disks {
                world.come_back(at);
            }
            assert!(world.leader.is_some(), "somebody can lead");
            for _ in 0..3 {
                for at in 0..disks {
                    world.follow(at);
                    world.flush(at);
                }
                world.tick(Duration::from_secs(1));
            }
            assert_eq!(world.isr.len(), disks, "all are in sync");
            assert_eq!(world.progress.high_watermark(), world.progress.log_end());
            assert!(world.replicas.windows(2).all(|pair| pair[0].log == pair[1].log));
        });
        let outcome = std::panic::catch_unwind(run);
        assert!(outcome.is_ok(), "replay with ONCELOG_SEED={round}");
    }
}
