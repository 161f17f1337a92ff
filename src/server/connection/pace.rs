//! The pace of a client that is waited for: the limits on silence, and on trickling.

use std::time::Duration;

/// The most credit that a fast client can gather against a slow time to come.
const CREDIT: Duration = Duration::from_secs(300);

/// The least that a client has to move while it is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Demand {
    /// The longest time in which it may move nothing at all.
    pub(super) silence: Duration,
    /// Bytes per second in the long run; 0 asks for nothing.
    pub(super) rate: u64,
    /// The time that it may be waited for before `rate` counts.
    pub(super) grace: Duration,
}

/// One direction of an exchange, as the sweep sees it.
///
/// Time counts only where two looks in a row find the client waited for. The rate is kept as a credit of time: waiting
/// spends it, and each byte earns the time that it may take at `rate`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    bytes: u64,
    waited: bool,
    silent: Duration,
    /// None before the client was waited for.
    credit: Option<Duration>,
}

impl Pace {
    /// Begins after so many bytes, which earn the client nothing: they were of another exchange.
    pub(super) fn after(bytes: u64) -> Self {
        Self { bytes, ..Self::default() }
    }

    /// Takes a look: `waited` if the client is waited for now, the bytes that it has moved in all, and the time
    /// since the last look. Returns true if the client falls short of what is demanded.
    pub(super) fn falls_short(
        &mut self,
        waited: bool,
        bytes: u64,
        passed: Duration,
        demand: &Demand,
    ) -> bool {
        let moved = bytes.saturating_sub(self.bytes);
        let waited_all_along = waited && self.waited;
        self.bytes = bytes;
        self.waited = waited;
        self.silent = if waited_all_along && moved == 0 { self.silent + passed } else { Duration::ZERO };

        let mut credit = self.credit.unwrap_or(demand.grace);
        if let Some(micros) = moved.saturating_mul(1_000_000).checked_div(demand.rate) {
            credit = credit.saturating_add(Duration::from_micros(micros)).min(CREDIT.max(demand.grace));
        }
        if waited_all_along {
            credit = credit.saturating_sub(passed);
        }
        self.credit = Some(credit);
        let trickles = demand.rate > 0 && waited && credit.is_zero();
        waited && self.silent >= demand.silence || trickles
    }
}

#[cfg(test)]
mod tests {
    //! A client that is too slow is told from one that is only waited for now and then.

    use super::*;

    const STEP: Duration = Duration::from_millis(250);
    const DEMAND: Demand =
        Demand { silence: Duration::from_secs(30), rate: 240, grace: Duration::from_secs(30) };

    /// The time until a client that moves `bytes` every `every` looks falls short; `None` if it does not within
    /// `looks`.
    fn endures(every: u32, bytes: u64, looks: u32) -> Option<Duration> {
        let mut pace = Pace::default();
        let mut sum = 0;
        for look in 0..looks {
            if look % every == 0 {
                sum += bytes;
            }
            if pace.falls_short(true, sum, STEP, &DEMAND) {
                return Some(STEP * look);
            }
        }
        None
    }

    #[test]
    fn silence_is_endured_for_its_limit() {
        assert_eq!(endures(u32::MAX, 0, 1000), Some(DEMAND.silence));
    }

    #[test]
    fn a_trickle_is_endured_little_longer_than_the_grace() {
        let endured = endures(4, 1, 1000).expect("one byte a second is too little");
        assert!(endured >= DEMAND.grace && endured < DEMAND.grace * 2, "{endured:?}");
    }

    #[test]
    fn the_rate_itself_is_endured_for_ever_also_in_lumps() {
        assert_eq!(endures(4, 240, 100_000), None);
        assert_eq!(endures(80, 240 * 20, 100_000), None);
    }

    #[test]
    fn a_gigabyte_buys_no_more_than_the_credit() {
        let mut pace = Pace::default();
        assert!(!pace.falls_short(true, 1 << 30, STEP, &DEMAND));
        let trickle = (1..10_000).find(|look| pace.falls_short(true, (1 << 30) + look / 4, STEP, &DEMAND));
        let endured = STEP * u32::try_from(trickle.expect("an end")).expect("few looks");
        assert!(endured < CREDIT + CREDIT / 10, "{endured:?}");
    }

    #[test]
    fn time_in_which_the_client_is_not_waited_for_does_not_count() {
        let mut pace = Pace::default();
        for look in 0..10_000 {
            // Waited for at every other look only: in between the server waits for the handler.
            assert!(!pace.falls_short(look % 2 == 0, 0, STEP, &DEMAND));
        }
    }

    #[test]
    fn without_a_rate_only_silence_counts() {
        let demand = Demand { rate: 0, ..DEMAND };
        let mut pace = Pace::default();
        for look in 0..100_000 {
            assert!(!pace.falls_short(true, look / 100, STEP, &demand));
        }
    }
}
