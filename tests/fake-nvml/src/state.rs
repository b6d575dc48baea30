//! The state file: which one it is, and what it says now.

#![allow(unsafe_code, reason = "asks the dynamic loader for its own file name")]

use std::collections::HashMap;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

/// NVML's return codes.
pub const SUCCESS: u32 = 0;
pub const INVALID_ARGUMENT: u32 = 2;
pub const NOT_SUPPORTED: u32 = 3;
const NO_PERMISSION: u32 = 4;
const DRIVER_NOT_LOADED: u32 = 9;
const TIMEOUT: u32 = 10;
const GPU_IS_LOST: u32 = 15;
const LIB_RM_VERSION_MISMATCH: u32 = 18;
const UNKNOWN: u32 = 999;

/// What a slow call takes.
const SLOW: Duration = Duration::from_millis(20);

/// The file's content at one moment.
pub struct State {
    values: HashMap<String, String>,
}

impl State {
    /// Reads the file; a missing one means all defaults.
    pub fn read() -> Self {
        let text = path()
            .and_then(|path| fs::read_to_string(path).ok())
            .unwrap_or_default();
        let values = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
            .collect();
        Self { values }
    }

    /// A text, of the device if it has its own.
    pub fn text(&self, index: u32, key: &str) -> Option<&str> {
        self.values
            .get(&format!("{index}.{key}"))
            .or_else(|| self.values.get(key))
            .map(String::as_str)
    }

    /// A number, decimal or `0x…`.
    pub fn number(&self, index: u32, key: &str, default: i64) -> i64 {
        let Some(text) = self.text(index, key) else {
            return default;
        };
        match text.strip_prefix("0x") {
            Some(hex) => i64::from_str_radix(hex, 16).unwrap_or(default),
            None => text.parse().unwrap_or(default),
        }
    }

    fn fault(&self, index: Option<u32>, call: &str) -> Option<&str> {
        let specific = format!("fault.{call}");
        match index {
            Some(index) => self
                .text(index, &specific)
                .or_else(|| self.text(index, "fault")),
            None => self.values.get(&specific).map(String::as_str),
        }
    }
}

/// The state after waiting for as long as the call is to hang, or the code with which the
/// call is to fail. `index` is `None` for calls that concern no device.
pub fn enter(index: Option<u32>, call: &str) -> Result<State, u32> {
    loop {
        let state = State::read();
        let code = match state.fault(index, call) {
            None | Some("none" | "") => return Ok(state),
            Some("slow") => {
                std::thread::sleep(SLOW);
                return Ok(state);
            }
            Some("hang") => {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            Some("gpu_lost") => GPU_IS_LOST,
            Some("not_supported") => NOT_SUPPORTED,
            Some("no_permission") => NO_PERMISSION,
            Some("driver_not_loaded") => DRIVER_NOT_LOADED,
            Some("version_mismatch") => LIB_RM_VERSION_MISMATCH,
            Some("timeout") => TIMEOUT,
            Some(_) => UNKNOWN,
        };
        return Err(code);
    }
}

fn path() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("FAKE_NVML_STATE") {
        return Some(path.into());
    }
    Some(own_path()?.with_extension("state"))
}

#[repr(C)]
struct DlInfo {
    file_name: *const c_char,
    file_base: *mut c_void,
    symbol_name: *const c_char,
    symbol_address: *mut c_void,
}

unsafe extern "C" {
    fn dladdr(address: *const c_void, info: *mut DlInfo) -> c_int;
}

/// The file from which this library was loaded.
fn own_path() -> Option<PathBuf> {
    let mut info = DlInfo {
        file_name: std::ptr::null(),
        file_base: std::ptr::null_mut(),
        symbol_name: std::ptr::null(),
        symbol_address: std::ptr::null_mut(),
    };
    // SAFETY: the address is that of a function of this library and `info` is writable.
    let found = unsafe { dladdr(own_path as *const c_void, &mut info) };
    if found == 0 || info.file_name.is_null() {
        return None;
    }
    // SAFETY: the loader gave a NUL-terminated path that lives as long as the library.
    let name = unsafe { CStr::from_ptr(info.file_name) };
    Some(OsStr::from_bytes(name.to_bytes()).into())
}
