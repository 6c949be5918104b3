//! The encodings of the agreement's messages, and of what an acceptor keeps on disk.

use bytes::Bytes;
use model::{DecodeError, Metadata, MetadataHash, NodeId, Reader, StorageId, Writer};

use super::{Accepted, Acceptor, Answer, Ask, Ballot, Refusal, Reply, Request};

const FORMAT: u8 = 1;

const PREPARE: u8 = 1;
const ACCEPT: u8 = 2;

const PROMISED: u8 = 1;
const ACCEPTED: u8 = 2;
const OUTBID: u8 = 3;
const DECIDED: u8 = 4;
const BEHIND: u8 = 5;
const REFUSED: u8 = 6;

const OTHER_PARENT: u8 = 1;
const NOT_AN_ACCEPTOR: u8 = 2;
const INVALID_VALUE: u8 = 3;
const ABSTAINS: u8 = 4;

impl Request {
    /// The bytes of the message.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(FORMAT).u128(self.instance.0).u64(self.sequence);
        write_ballot(&mut writer, self.ballot);
        match &self.ask {
            Ask::Prepare => writer.u8(PREPARE),
            Ask::Accept(value) => writer.u8(ACCEPT).bytes(value),
        };
        writer.finish()
    }

    /// Reads a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.format("agreement request", FORMAT)?;
        let it = Self {
            instance: MetadataHash(reader.u128()?),
            sequence: reader.u64()?,
            ballot: read_ballot(&mut reader)?,
            ask: match reader.u8()? {
                PREPARE => Ask::Prepare,
                ACCEPT => Ask::Accept(read_value(&mut reader)?),
                _ => return Err(DecodeError::Invalid { what: "agreement request" }),
            },
        };
        reader.finish()?;
        Ok(it)
    }
}

impl Reply {
    /// The bytes of the message.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(FORMAT).u128(self.instance.0);
        write_ballot(&mut writer, self.ballot);
        match &self.answer {
            Answer::Promised(accepted) => {
                writer.u8(PROMISED);
                write_accepted(&mut writer, accepted.as_ref());
            }
            Answer::Accepted => {
                writer.u8(ACCEPTED);
            }
            Answer::Outbid(ballot) => {
                writer.u8(OUTBID);
                write_ballot(&mut writer, *ballot);
            }
            Answer::Decided(metadata) => {
                writer.u8(DECIDED).bytes(metadata);
            }
            Answer::Behind { sequence } => {
                writer.u8(BEHIND).u64(*sequence);
            }
            Answer::Refused(refusal) => {
                writer.u8(REFUSED);
                write_refusal(&mut writer, *refusal);
            }
        }
        writer.finish()
    }

    /// Reads a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.format("agreement reply", FORMAT)?;
        let it = Self {
            instance: MetadataHash(reader.u128()?),
            ballot: read_ballot(&mut reader)?,
            answer: match reader.u8()? {
                PROMISED => Answer::Promised(read_accepted(&mut reader)?),
                ACCEPTED => Answer::Accepted,
                OUTBID => Answer::Outbid(read_ballot(&mut reader)?),
                DECIDED => Answer::Decided(read_value(&mut reader)?),
                BEHIND => Answer::Behind { sequence: reader.u64()? },
                REFUSED => Answer::Refused(read_refusal(&mut reader)?),
                _ => return Err(DecodeError::Invalid { what: "agreement reply" }),
            },
        };
        reader.finish()?;
        Ok(it)
    }
}

impl Acceptor {
    /// The bytes to keep on disk.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(FORMAT).u128(self.storage.0).bool(self.abstains);
        write_ballot(&mut writer, self.promised);
        write_accepted(&mut writer, self.accepted.as_ref());
        writer.finish()
    }

    /// Reads the state that this directory, `storage`, has kept of an instance. If another directory
    /// has written it, it is a copy and may be an old one: the acceptor abstains.
    pub fn decode(bytes: &[u8], storage: StorageId) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.format("agreement state", FORMAT)?;
        let written_by = StorageId(reader.u128()?);
        let abstains = reader.bool("abstains")?;
        let promised = read_ballot(&mut reader)?;
        let accepted = read_accepted(&mut reader)?;
        reader.finish()?;
        if written_by != storage {
            return Ok(Self::abstaining(storage));
        }
        Ok(Self { storage, abstains, promised, accepted })
    }
}

fn write_ballot(writer: &mut Writer, it: Ballot) {
    writer.u64(it.round).u128(it.node.0).u64(it.run);
}

fn read_ballot(reader: &mut Reader<'_>) -> Result<Ballot, DecodeError> {
    Ok(Ballot { round: reader.u64()?, node: NodeId(reader.u128()?), run: reader.u64()? })
}

fn write_accepted(writer: &mut Writer, it: Option<&Accepted>) {
    writer.bool(it.is_some());
    if let Some(it) = it {
        write_ballot(writer, it.ballot);
        writer.bytes(&it.value);
    }
}

fn read_accepted(reader: &mut Reader<'_>) -> Result<Option<Accepted>, DecodeError> {
    if !reader.bool("accepted")? {
        return Ok(None);
    }
    Ok(Some(Accepted { ballot: read_ballot(reader)?, value: read_value(reader)? }))
}

fn read_value(reader: &mut Reader<'_>) -> Result<Bytes, DecodeError> {
    Ok(Bytes::copy_from_slice(reader.bytes("metadata", Metadata::BYTES_MAX)?))
}

fn write_refusal(writer: &mut Writer, it: Refusal) {
    match it {
        Refusal::OtherParent { hash } => writer.u8(OTHER_PARENT).u128(hash.0),
        Refusal::NotAnAcceptor => writer.u8(NOT_AN_ACCEPTOR),
        Refusal::InvalidValue => writer.u8(INVALID_VALUE),
        Refusal::Abstains => writer.u8(ABSTAINS),
    };
}

fn read_refusal(reader: &mut Reader<'_>) -> Result<Refusal, DecodeError> {
    Ok(match reader.u8()? {
        OTHER_PARENT => Refusal::OtherParent { hash: MetadataHash(reader.u128()?) },
        NOT_AN_ACCEPTOR => Refusal::NotAnAcceptor,
        INVALID_VALUE => Refusal::InvalidValue,
        ABSTAINS => Refusal::Abstains,
        _ => return Err(DecodeError::Invalid { what: "refusal" }),
    })
}
