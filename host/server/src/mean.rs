//! A running mean of what was measured: the newest counts, and the first ones count fully.

/// Refuses to say anything before it has seen enough; how much that is, is its owner's matter.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mean {
    value: f64,
    count: u32,
}

impl Mean {
    /// Takes one more; `weight` is that of the newest once there are many.
    pub fn take(&mut self, news: f64, weight: f64) {
        self.count = self.count.saturating_add(1);
        self.value += weight.max(1.0 / f64::from(self.count)) * (news - self.value);
    }

    /// The mean, if there are at least so many behind it.
    pub fn known(self, least: u32) -> Option<f64> {
        (self.count >= least).then_some(self.value)
    }

    /// How many there were.
    #[cfg(test)]
    pub fn count(self) -> u32 {
        self.count
    }
}
