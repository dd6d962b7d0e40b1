//! Bytes that wait for their reader. Memory is proportional to what waits: an idle stream holds none, and buffers do not
//! double as they grow.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

/// Largest piece, in bytes, that gathers small frames.
const PIECE: usize = 16 * 1024;

#[derive(Debug, Default)]
pub(crate) struct Received {
    /// The oldest bytes. Usually there are no others.
    first: Vec<u8>,
    more: VecDeque<Vec<u8>>,
    /// Bytes of the first piece that were read already.
    taken: usize,
    len: usize,
}

impl Received {
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn push(&mut self, mut bytes: &[u8]) {
        let last = self.more.back_mut().unwrap_or(&mut self.first);
        let room = (last.capacity() - last.len()).min(bytes.len());
        last.extend_from_slice(&bytes[..room]);
        bytes = &bytes[room..];
        if !bytes.is_empty() {
            // The first piece has the exact size. If more arrives before it is read, later pieces have room to spare.
            let mut piece = Vec::with_capacity(bytes.len().max(self.len.min(PIECE)));
            piece.extend_from_slice(bytes);
            if self.len == 0 { self.first = piece } else { self.more.push_back(piece) }
        }
        self.len += room + bytes.len();
    }

    /// Copies as much as fits and returns the count.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> usize {
        let mut count = 0;
        while count < into.len() && count < self.len {
            let rest = &self.first[self.taken..];
            let step = rest.len().min(into.len() - count);
            into[count..count + step].copy_from_slice(&rest[..step]);
            count += step;
            self.taken += step;
            if self.taken == self.first.len() {
                self.next_piece();
            }
        }
        self.len -= count;
        count
    }

    /// Takes the oldest piece; empty when there is none.
    pub(crate) fn take(&mut self) -> Bytes {
        let (piece, taken) = (std::mem::take(&mut self.first), self.taken);
        self.next_piece();
        self.len -= piece.len() - taken;
        let mut piece = Bytes::from(piece);
        piece.advance(taken);
        piece
    }

    fn next_piece(&mut self) {
        self.taken = 0;
        self.first = self.more.pop_front().unwrap_or_default();
        if self.more.is_empty() {
            self.more = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(steps in prop::collection::vec((0_usize..40_000, 0_usize..40_000), 1..40)) {
            let (mut received, mut next_in, mut next_out) = (Received::default(), 0_usize, 0_usize);
            let byte = |n: usize| u8::try_from(n % 251).expect("small");
            for (push, read) in steps {
                received.push(&(next_in..next_in + push).map(byte).collect::<Vec<_>>());
                next_in += push;
                let into = if read % 5 == 0 {
                    let piece = received.take();
                    prop_assert_eq!(piece.is_empty(), next_in == next_out);
                    piece.to_vec()
                } else {
                    let mut into = vec![0; read];
                    let count = received.read(&mut into);
                    prop_assert_eq!(count, read.min(next_in - next_out));
                    into.truncate(count);
                    into
                };
                let count = into.len();
                prop_assert!(into[..count].iter().enumerate().all(|(n, found)| *found == byte(next_out + n)));
                next_out += count;
                prop_assert_eq!(received.len(), next_in - next_out);
            }
        }
    }

    #[test]
    fn many_small_frames_cost_little_more_than_their_bytes() {
        let mut received = Received::default();
        for _ in 0..100_000 {
            received.push(b"x");
        }
        let held: usize = received.first.capacity() + received.more.iter().map(Vec::capacity).sum::<usize>();
        assert!(held < 100_000 + 2 * PIECE, "{held}");
        assert!(received.more.len() < 40, "{}", received.more.len());
    }
}
