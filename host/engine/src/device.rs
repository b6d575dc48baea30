//! On what a model runs: the CPU with this engine's own kernels, or an NVIDIA GPU through candle.
//!
//! It exists so that a configuration can name a device in every build, and is told in plain words
//! when this build or this machine has none. It never falls back to the CPU on its own: a tier that
//! is silently a hundred times slower than planned would look like an overload.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `cpu`, or `cuda:0` with the number that the NVIDIA driver gives the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    #[default]
    Cpu,
    Cuda(usize),
}

/// A device that cannot be used. The configuration's fault or the machine's; the message says which.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    #[error("{0:?} is not a device; write \"cpu\" or \"cuda:0\"")]
    Name(String),
    #[error(
        "{0}: this homeostat was built without CUDA. Build it on a machine with nvcc by \
         `cargo build --release -p homeostat --features cuda`, or set device = \"cpu\""
    )]
    NotBuilt(Device),
    #[error("{device}: no such GPU can be used here (is the NVIDIA driver loaded?): {problem}")]
    Unavailable { device: Device, problem: String },
    #[error(
        "{device}: no room for the KV cache of {bytes} bytes beside the weights: {problem}; lower \
         kv_bytes"
    )]
    Memory {
        device: Device,
        bytes: u64,
        problem: String,
    },
    #[error(
        "{device}: it cannot compute this model: {problem}. If a kernel or an image is what is \
         missing, this homeostat was built for another GPU: build it here, or name the GPU's \
         compute capability in CUDA_COMPUTE_CAP (90 for an H100)"
    )]
    Compute { device: Device, problem: String },
}

impl Device {
    /// `None` is the CPU, which is not candle's business.
    pub(crate) fn open(self) -> Result<Option<candle_core::Device>, DeviceError> {
        let Self::Cuda(ordinal) = self else {
            return Ok(None);
        };
        if !cfg!(feature = "cuda") {
            return Err(DeviceError::NotBuilt(self));
        }
        let opened = candle_core::Device::new_cuda(ordinal);
        opened.map(Some).map_err(|e| DeviceError::Unavailable {
            device: self,
            problem: e.to_string(),
        })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for Device {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        let ordinal = name.strip_prefix("cuda:").and_then(|n| n.parse().ok());
        match (name, ordinal) {
            ("cpu", _) => Ok(Self::Cpu),
            (_, Some(ordinal)) => Ok(Self::Cuda(ordinal)),
            _ => Err(DeviceError::Name(name.to_owned())),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = DeviceError;

    fn try_from(name: String) -> Result<Self, DeviceError> {
        name.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_as_it_is_written() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(7)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        for name in ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            let error = name.parse::<Device>().expect_err(name);
            assert!(error.to_string().contains("cuda:0"), "{error}");
        }
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_build_without_cuda_says_how_to_get_one() {
        let error = Device::Cuda(0).open().expect_err("no CUDA here");
        assert!(error.to_string().contains("--features cuda"), "{error}");
        assert!(matches!(Device::Cpu.open(), Ok(None)));
    }
}
