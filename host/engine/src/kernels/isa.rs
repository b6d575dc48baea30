//! Which vector instructions to use. A value of [`Isa`] is a *proof*: it can only be made by asking
//! the processor, so that the kernels may be called from safe code. It refuses to guess and to
//! downgrade silently: a wish that cannot be met is an error.

use std::sync::OnceLock;

use super::KernelError;

/// An instruction set that this processor is known to have. Results do not depend on it, only speed
/// does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(pub(super) Level);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Isa {
    /// Environment variable that forces a lower instruction set: `avx512vnni`, `avxvnni`, `avx2` or
    /// `portable`.
    pub const ENV: &'static str = "HOMEOSTAT_ISA";

    /// The best instruction set of this processor, or the one that [`Isa::ENV`] asks for.
    ///
    /// # Errors
    /// [`KernelError::UnknownIsa`], [`KernelError::UnsupportedIsa`]: both are the host's
    /// configuration.
    pub fn detect() -> Result<Isa, KernelError> {
        match std::env::var_os(Self::ENV) {
            None => Ok(Self::available()[0]),
            Some(wish) => Self::named(&wish.to_string_lossy()),
        }
    }

    /// What [`Isa::detect`] found the first time, for those who have nobody to tell of a wish that
    /// cannot be met: the engine refuses such a wish before anything runs.
    pub fn of_this_machine() -> Isa {
        static FOUND: OnceLock<Isa> = OnceLock::new();
        *FOUND.get_or_init(|| Self::detect().unwrap_or(Isa(Level::Portable)))
    }

    /// The instruction set with this name.
    ///
    /// # Errors
    /// As [`Isa::detect`].
    pub fn named(name: &str) -> Result<Isa, KernelError> {
        let known = ["avx512vnni", "avxvnni", "avx2", "portable"]
            .into_iter()
            .find(|k| k.eq_ignore_ascii_case(name));
        let Some(known) = known else {
            return Err(KernelError::UnknownIsa(name.to_owned()));
        };
        Self::available()
            .into_iter()
            .find(|isa| isa.name() == known)
            .ok_or(KernelError::UnsupportedIsa(known))
    }

    /// Everything this processor can run, best first; never empty, `portable` is always the last.
    pub fn available() -> Vec<Isa> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            if avx512 {
                found.push(Isa(Level::Avx512Vnni));
            }
            if avx2 && is_x86_feature_detected!("avxvnni") {
                found.push(Isa(Level::AvxVnni));
            }
            if avx2 {
                found.push(Isa(Level::Avx2));
            }
        }
        found.push(Isa(Level::Portable));
        found
    }

    /// The name used in [`Isa::ENV`], logs and metrics.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni => "avx512vnni",
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            Level::Portable => "portable",
        }
    }
}
