//! What a request is told of its energy, and the accounts of a device.
//!
//! No joule without its origin, its error and its boundary: a number from a model never
//! looks like one from a sensor.

use std::fmt;

use homeostat_hooks::{DeviceKind, Origin};

use super::meter::MeterFaults;
use super::split::SplitMethod;

/// What is inside the number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Boundary {
    /// Accelerators only.
    Accelerator,
    /// Accelerators, and the processor's share.
    AcceleratorAndCpu,
    /// The processor; there is no accelerator, or it did nothing for this request.
    Cpu,
    /// The whole machine, at its plug.
    Host,
}

impl Boundary {
    /// Of devices of these kinds together.
    pub(super) fn of(kinds: impl Iterator<Item = DeviceKind>) -> Self {
        let (mut accelerator, mut other) = (false, false);
        for kind in kinds {
            match kind {
                DeviceKind::Host | DeviceKind::External => return Self::Host,
                DeviceKind::Gpu | DeviceKind::Npu => accelerator = true,
                DeviceKind::Cpu | DeviceKind::Soc => other = true,
            }
        }
        match (accelerator, other) {
            (true, true) => Self::AcceleratorAndCpu,
            (true, false) => Self::Accelerator,
            (false, _) => Self::Cpu,
        }
    }

    /// Of a sum.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (a, b) if a == b => a,
            (Self::Host, _) | (_, Self::Host) => Self::Host,
            _ => Self::AcceleratorAndCpu,
        }
    }
}

impl fmt::Display for Boundary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accelerator => f.write_str("accelerator"),
            Self::AcceleratorAndCpu => f.write_str("accelerator+cpu"),
            Self::Cpu => f.write_str("cpu"),
            Self::Host => f.write_str("host"),
        }
    }
}

/// The energy of one request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Receipt {
    /// Reading prompts, all attempts together, µJ.
    pub prefill_uj: u64,
    /// Writing answers, µJ.
    pub decode_uj: u64,
    /// What policies asked models for it, µJ.
    pub policy_uj: u64,
    /// How much of all three went into guesses that were thrown away, µJ.
    pub wasted_uj: u64,
    /// What steps that no window covers yet are expected to add, µJ; 0 once settled.
    pub pending_uj: u64,
    /// Of that: what policies asked, µJ.
    pub policy_pending_uj: u64,
    /// The weakest origin of all that was added up.
    pub origin: Origin,
    /// Relative error to expect of the sum, sensor and attribution together.
    pub relative_error: f64,
    /// What is inside.
    pub boundary: Boundary,
    /// The coarsest way in which a part was split.
    pub method: SplitMethod,
    /// Somebody else used the same device.
    pub shared: bool,
    /// Part of the time no sensor answered: the true sum is larger.
    pub incomplete: bool,
    /// Final: nothing changes it any more.
    pub settled: bool,
}

impl Receipt {
    /// All of it, expected part included, µJ.
    pub fn total_uj(&self) -> u64 {
        self.prefill_uj + self.decode_uj + self.policy_uj + self.pending_uj
    }

    /// All of it, J.
    pub fn joules(&self) -> f64 {
        self.total_uj() as f64 / 1e6
    }

    /// Two requests as one, such as the answers to one question: sums, and of everything
    /// else the weaker.
    pub fn plus(self, other: Self) -> Self {
        let (mine, theirs) = (self.total_uj() as f64, other.total_uj() as f64);
        let error = self.relative_error * mine + other.relative_error * theirs;
        Self {
            prefill_uj: self.prefill_uj + other.prefill_uj,
            decode_uj: self.decode_uj + other.decode_uj,
            policy_uj: self.policy_uj + other.policy_uj,
            wasted_uj: self.wasted_uj + other.wasted_uj,
            pending_uj: self.pending_uj + other.pending_uj,
            policy_pending_uj: self.policy_pending_uj + other.policy_pending_uj,
            origin: self.origin.max_weakness(other.origin),
            relative_error: match mine + theirs > 0.0 {
                true => error / (mine + theirs),
                false => self.relative_error.max(other.relative_error),
            },
            boundary: self.boundary.and(other.boundary),
            method: self.method.max(other.method),
            shared: self.shared || other.shared,
            incomplete: self.incomplete || other.incomplete,
            settled: self.settled && other.settled,
        }
    }
}

/// Which of two origins says less.
pub trait Weakness {
    /// The weaker of two origins: a sum is worth as much as its worst part.
    fn max_weakness(self, other: Self) -> Self;
}

impl Weakness for Origin {
    fn max_weakness(self, other: Self) -> Self {
        let rank = |origin: Self| match origin {
            Self::Measured => 0,
            Self::Derived => 1,
            Self::Modelled => 2,
            Self::Simulated => 3,
        };
        if rank(other) > rank(self) {
            other
        } else {
            self
        }
    }
}

/// Where the energy of a device went that belongs to no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unattributed {
    /// Other programs on the device.
    pub foreign_uj: u64,
    /// Work of a request that was settled already.
    pub late_uj: u64,
    /// Steps whose log was lost.
    pub lost_uj: u64,
    /// What the host asked its models for itself.
    pub host_uj: u64,
}

impl Unattributed {
    /// All of it, µJ.
    pub fn total_uj(&self) -> u64 {
        self.foreign_uj + self.late_uj + self.lost_uj + self.host_uj
    }
}

/// The books of one device. `attributed + idle + unattributed = measured`, to the µJ.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Accounts {
    /// What the meter said, over all windows that were booked.
    pub measured_uj: u64,
    /// Reading prompts.
    pub prefill_uj: u64,
    /// Writing answers.
    pub decode_uj: u64,
    /// What policies asked for requests.
    pub policy_uj: u64,
    /// Nobody had work.
    pub idle_uj: u64,
    /// Belongs to no request.
    pub unattributed: Unattributed,
    /// Windows booked.
    pub windows: u64,
    /// Steps that came after the window they belong to.
    pub late_steps: u64,
    /// What went wrong with the meter.
    pub faults: MeterFaults,
    /// The weakest origin of a window so far.
    pub origin: Origin,
    /// The meter is not believed at present.
    pub suspect: bool,
    /// Static power W, J per byte, J per operation, once they are learned.
    pub coefficients: Option<[f64; 3]>,
    /// Error of these, as a share of the energy.
    pub fit_error: Option<f64>,
}

impl Accounts {
    /// Requests' part, µJ.
    pub fn attributed_uj(&self) -> u64 {
        self.prefill_uj + self.decode_uj + self.policy_uj
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Receipt = Receipt {
        prefill_uj: 1_000_000,
        decode_uj: 2_000_000,
        policy_uj: 0,
        wasted_uj: 500_000,
        pending_uj: 0,
        policy_pending_uj: 0,
        origin: Origin::Measured,
        relative_error: 0.1,
        boundary: Boundary::Accelerator,
        method: SplitMethod::Components,
        shared: false,
        incomplete: false,
        settled: true,
    };

    #[test]
    fn a_sum_of_receipts_is_as_good_as_the_worse_of_them() {
        let weak = Receipt {
            decode_uj: 4_000_000,
            policy_uj: 1_000_000,
            origin: Origin::Modelled,
            relative_error: 0.6,
            boundary: Boundary::Cpu,
            method: SplitMethod::Tokens,
            settled: false,
            ..ONE
        };
        let sum = ONE.plus(weak);
        assert_eq!((sum.joules(), sum.policy_uj), (9.0, 1_000_000));
        assert_eq!(sum.origin, Origin::Modelled);
        assert!((sum.relative_error - (0.1 * 3.0 + 0.6 * 6.0) / 9.0).abs() < 1e-12);
        assert_eq!(sum.boundary.to_string(), "accelerator+cpu");
        assert_eq!((sum.method, sum.settled), (SplitMethod::Tokens, false));
    }
}
