//! Bends good inputs a little, since pure noise never gets past the first character: bits, bytes,
//! numbers at their limits, pieces doubled, taken out, moved, and put together from two inputs.

/// What parsers stumble over, put in as it is.
const TELLING: &[&[u8]] = &[
    b"\"",
    b"'",
    b"[",
    b"]",
    b"{",
    b"}",
    b"(",
    b")",
    b"=",
    b"\n",
    b"\r",
    b"\\",
    b"\\u0000",
    b"-1",
    b"-0",
    b"1e999",
    b"1e-999",
    b"NaN",
    b"inf",
    b"99999999999999999999",
    b"0x",
    b"null",
    b"true",
    b"[[",
    b"\xEF\xBB\xBF",
    b"#",
    b"${HOME}",
    b"${",
    b"..",
    b"/",
    b"//",
    b"+",
    b"$share/",
    b"\xFF",
    b"\xC3\x28",
    b"\xED\xA0\x80",
    b",,",
    b";",
    b" not ",
    b" and ",
    b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[",
];
/// Numbers at their limits; written in either byte order, in 1 to 8 bytes.
const EDGES: &[u64] = &[0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, u64::MAX / 2, u64::MAX];
/// Inputs do not grow beyond.
const LONGEST: usize = 64 << 10;

/// Makes inputs of a corpus, the same ones for the same seed.
pub struct Mutator {
    rng: fastrand::Rng,
}

impl Mutator {
    /// From a seed.
    pub fn new(seed: u64) -> Mutator {
        Mutator { rng: fastrand::Rng::with_seed(seed) }
    }

    /// An input near one or two of the corpus, which must not be empty.
    pub fn next(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut out = corpus[self.rng.usize(..corpus.len())].clone();
        if self.rng.u8(..8) == 0 {
            let other = &corpus[self.rng.usize(..corpus.len())];
            out.truncate(self.place(&out));
            out.extend_from_slice(&other[self.place(other)..]);
        }
        for _ in 0..=self.rng.u8(..5) {
            self.bend(&mut out);
        }
        out.truncate(LONGEST);
        out
    }

    fn place(&mut self, bytes: &[u8]) -> usize {
        self.rng.usize(..=bytes.len())
    }

    /// A range of at most 64 bytes.
    fn piece(&mut self, bytes: &[u8]) -> std::ops::Range<usize> {
        let at = self.place(bytes);
        at..(at + self.rng.usize(..64)).min(bytes.len())
    }

    fn bend(&mut self, out: &mut Vec<u8>) {
        let at = self.place(out);
        match self.rng.u8(..9) {
            0 => {
                let piece = self.piece(out);
                out.drain(piece);
            }
            1 => {
                let piece = self.piece(out);
                let piece = out[piece].to_vec();
                out.splice(at..at, piece);
            }
            2 => {
                let telling = TELLING[self.rng.usize(..TELLING.len())];
                out.splice(at..at, telling.iter().copied());
            }
            3 => {
                let telling = TELLING[self.rng.usize(..TELLING.len())];
                let end = (at + telling.len()).min(out.len());
                out.splice(at..end, telling.iter().copied());
            }
            4 => {
                let (n, byte) = (self.rng.usize(1..2000), self.rng.u8(..));
                out.splice(at..at, std::iter::repeat_n(byte, n));
            }
            5 => {
                let edge = EDGES[self.rng.usize(..EDGES.len())];
                let width = 1 << self.rng.u8(..4);
                let bytes = if self.rng.bool() {
                    edge.to_le_bytes()
                } else {
                    edge.rotate_right(8 * width as u32).to_be_bytes()
                };
                let end = (at + width).min(out.len());
                out.splice(at..end, bytes[..width].iter().copied());
            }
            6 => out.truncate(at),
            _ if at < out.len() => {
                if self.rng.bool() {
                    out[at] ^= 1 << self.rng.u8(..8);
                } else {
                    out[at] = self.rng.u8(..);
                }
            }
            _ => {}
        }
    }
}
