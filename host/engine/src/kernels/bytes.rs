//! Zeroed memory that starts on a cache line. `Vec` with an over-aligned element would do, but it touches
//! every page when it zeroes; a KV store must stay unmapped until it is used.

/// A fixed, zeroed run of bytes whose first byte is 64-aligned.
pub(super) struct AlignedBytes {
    raw: Vec<u8>,
    offset: usize,
    len: usize,
}

const ALIGN: usize = 64;

impl AlignedBytes {
    pub(super) fn zeroed(len: usize) -> Self {
        // `vec![0; n]` asks the allocator for zeroed pages instead of writing zeros.
        let raw = vec![0u8; len + ALIGN];
        let offset = raw.as_ptr().align_offset(ALIGN);
        assert!(offset < ALIGN, "a byte pointer can always be aligned");
        AlignedBytes { raw, offset, len }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn as_ptr(&self) -> *const u8 {
        self[..].as_ptr()
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self[..].as_mut_ptr()
    }
}

impl std::ops::Deref for AlignedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.raw[self.offset..self.offset + self.len]
    }
}

impl std::ops::DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.raw[self.offset..self.offset + self.len]
    }
}
