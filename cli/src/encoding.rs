//! Bytes as text and back. Keys and values are bytes; terminals, CSV and JSON want text.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

/// How bytes are written as text. One row uses one encoding for its key, sort key and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Encoding {
    /// UTF-8, as it is.
    #[default]
    Text,
    /// Two hexadecimal digits a byte.
    Hex,
    /// Base64 with padding, of the standard alphabet.
    Base64,
}

impl Encoding {
    /// This encoding, or base64 if it cannot write all of `fields`.
    pub(crate) fn fitting(self, fields: &[&[u8]]) -> Self {
        let fits = self != Self::Text || fields.iter().all(|it| std::str::from_utf8(it).is_ok());
        if fits { self } else { Self::Base64 }
    }

    /// Writes bytes. Panics if this is `Text` and they are no UTF-8: see [`Encoding::fitting`].
    pub(crate) fn write(self, bytes: &[u8]) -> String {
        match self {
            Self::Text => std::str::from_utf8(bytes).expect("the encoding fits").to_owned(),
            Self::Hex => hex(bytes),
            Self::Base64 => STANDARD.encode(bytes),
        }
    }

    /// Reads bytes, or says what is wrong with the text.
    pub(crate) fn read(self, text: &str) -> Result<Vec<u8>, String> {
        match self {
            Self::Text => Ok(text.as_bytes().to_vec()),
            Self::Hex => unhex(text).ok_or_else(|| format!("{} is no hex", shorten(text))),
            Self::Base64 => STANDARD
                .decode(text)
                .map_err(|error| format!("{} is no base64: {error}", shorten(text))),
        }
    }

    /// The encoding of a name in a column; empty for none.
    pub(crate) fn named(name: &str) -> Result<Option<Self>, String> {
        match name {
            "" => Ok(None),
            "text" => Ok(Some(Self::Text)),
            "hex" => Ok(Some(Self::Hex)),
            "base64" => Ok(Some(Self::Base64)),
            other => Err(format!("{other:?} is no encoding: text, hex or base64")),
        }
    }

    /// As columns and options spell it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Hex => "hex",
            Self::Base64 => "base64",
        }
    }
}

/// Bytes for the eye: text if it is printable, `0x` and hex if it is not.
pub(crate) fn readable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => format!("0x{}", hex(bytes)),
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|it| format!("{it:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |it: u8| char::from(it).to_digit(16).and_then(|it| u8::try_from(it).ok());
    let bytes = text.as_bytes();
    if !bytes.len().is_multiple_of(2) {
        return None;
    }
    bytes.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

fn shorten(text: &str) -> String {
    let shown: String = text.chars().take(20).collect();
    if shown.len() < text.len() { format!("{shown:?}...") } else { format!("{shown:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_encoding_reads_what_it_writes() {
        let all: Vec<u8> = (0..=255).collect();
        for encoding in [Encoding::Hex, Encoding::Base64] {
            assert_eq!(encoding.read(&encoding.write(&all)), Ok(all.clone()));
            assert_eq!(Encoding::named(encoding.name()), Ok(Some(encoding)));
        }
        assert_eq!(Encoding::Text.read("∀"), Ok("∀".as_bytes().to_vec()));
    }

    #[test]
    fn text_falls_back_to_base64() {
        assert_eq!(Encoding::Text.fitting(&[b"a", "ü".as_bytes()]), Encoding::Text);
        assert_eq!(Encoding::Text.fitting(&[b"a", b"\xff"]), Encoding::Base64);
        assert_eq!(Encoding::Hex.fitting(&[b"\xff"]), Encoding::Hex);
    }

    #[test]
    fn what_is_no_hex_is_refused() {
        for wrong in ["a", "0g", "+1", "é0"] {
            assert!(Encoding::Hex.read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_eye_gets_no_control_characters() {
        assert_eq!(readable(b"user:42"), "user:42");
        assert_eq!(readable(b"a\x1b[2J"), "0x611b5b324a");
        assert_eq!(readable(b"\xff"), "0xff");
    }
}
