//! Finds the events of an event stream in its lines.

use super::parsed::{MAX_MESSAGE, Parsed};

/// Parses an event stream: blocks of lines, each followed by an empty line.
#[derive(Debug, Default)]
pub(super) struct EventParser {
    block: Vec<u8>,
    size: u64,
    line_is_empty: bool,
    after_cr: bool,
}

impl EventParser {
    pub(super) fn add(&mut self, bytes: &[u8], found: &mut Vec<Parsed>) {
        for &byte in bytes {
            self.size += 1;
            let second_half = self.after_cr && byte == b'\n';
            self.after_cr = byte == b'\r';
            if byte != b'\n' && byte != b'\r' {
                self.line_is_empty = false;
                if self.block.len() < MAX_MESSAGE {
                    self.block.push(byte);
                }
            } else if second_half {
                // The line ended at the CR.
            } else if self.line_is_empty {
                let block = std::mem::take(&mut self.block);
                let size = std::mem::take(&mut self.size);
                if !block.is_empty() {
                    found.push(Parsed { kind: "event", data: block, size });
                }
            } else {
                self.line_is_empty = true;
                if self.block.len() < MAX_MESSAGE {
                    self.block.push(b'\n');
                }
            }
        }
    }
}
