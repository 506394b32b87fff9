//! How long the oldest event that was signed waits for the collector: a bounded list of (number, time).

use std::collections::VecDeque;
use std::time::SystemTime;

/// Entries kept; when there are more, neighbours become one with the time of the older.
const AGES_MAX: usize = 256;

/// Events before `until` that are not before the entry in front were signed at that time or later.
#[derive(Debug, Default)]
pub(super) struct Ages {
    signed: VecDeque<(u64, SystemTime)>,
}

impl Ages {
    /// A group was signed; now events before `until` are.
    pub(super) fn signed(&mut self, until: u64, at: SystemTime) {
        if self.signed.back().is_some_and(|(before, _)| *before >= until) {
            return;
        }
        if self.signed.len() >= AGES_MAX {
            let mut kept = VecDeque::with_capacity(AGES_MAX);
            while let Some((until, at)) = self.signed.pop_front() {
                let until = self.signed.pop_front().map_or(until, |(later, _)| later);
                kept.push_back((until, at));
            }
            self.signed = kept;
        }
        self.signed.push_back((until, at));
    }

    /// When the oldest was signed of those that the collector has not; events before `delivered` it has.
    pub(super) fn oldest(&mut self, delivered: u64) -> Option<SystemTime> {
        while self.signed.front().is_some_and(|(until, _)| *until <= delivered) {
            self.signed.pop_front();
        }
        self.signed.front().map(|(_, at)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn the_oldest_is_the_first_that_was_not_delivered() {
        let mut ages = Ages::default();
        assert_eq!(ages.oldest(0), None);
        ages.signed(10, at(1));
        ages.signed(20, at(2));
        assert_eq!(ages.oldest(0), Some(at(1)));
        assert_eq!(ages.oldest(9), Some(at(1)));
        assert_eq!(ages.oldest(10), Some(at(2)));
        assert_eq!(ages.oldest(20), None);
    }

    #[test]
    fn many_groups_take_bounded_memory_and_never_look_younger() {
        let mut ages = Ages::default();
        for group in 1..=10_000 {
            ages.signed(group * 10, at(group));
            assert!(ages.signed.len() <= AGES_MAX);
        }
        for delivered in (0..100_000).step_by(777) {
            let exact = at(delivered / 10 + 1);
            let told = ages.oldest(delivered).unwrap();
            assert!(told <= exact, "{delivered}");
        }
        assert_eq!(ages.oldest(100_000), None);
    }
}
