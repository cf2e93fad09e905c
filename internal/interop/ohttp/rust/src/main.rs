// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//! One end of one exchange of chunked Oblivious HTTP, by the crates `ohttp` and `bhttp`. The
//! tests beside it are its transport, and what stands behind it:
//!
//!     peer keys KEM ID SEED                   prints the key configuration, in hex
//!     peer ask whole|pieces CONFIGURATIONS    a client; a list of configurations, in hex
//!     peer answer whole|pieces KEM ID SEED    a gateway
//!
//! It reads and writes frames: four bytes of length, and so many bytes. An empty frame ends a
//! message. A message that is not sealed is a frame of lines (of a request method, scheme,
//! authority and path, of an answer the status; then fields, as "name: value"), and frames of
//! content. Of a sealed message, the borders of frames mean nothing.
//!
//! A client reads a message and writes it sealed, then reads a sealed answer and writes it opened;
//! a gateway the other way round. With "whole" a message is of known length, is sealed in one go,
//! and is read to its end before anything is written. With "pieces" each frame of content is
//! sealed when it has come, and each piece that has opened is written.

use std::{
    error::Error,
    io::{self, Cursor, Read, Write},
    process::ExitCode,
};

use bhttp::{ControlData, FieldSection, Message, Mode, StatusCode, stream::AsyncReadMessage};
use futures::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, executor::block_on, io::AllowStdIo,
};
use ohttp::{
    ClientRequest, KeyConfig, Server, SymmetricSuite,
    hpke::{Aead, Kdf, Kem},
};

type Res<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match block_on(run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &[&str]) -> Res<()> {
    match *args {
        ["keys", kem, id, seed] => {
            for b in keys(kem, id, seed)?.encode()? {
                print!("{b:02x}");
            }
            Ok(())
        }
        ["ask", mode, list] => ask(mode == "pieces", &unhex(list)?).await,
        ["answer", mode, kem, id, seed] => answer(mode == "pieces", keys(kem, id, seed)?).await,
        _ => Err("usage: peer keys|ask|answer …".into()),
    }
}

/// The client.
async fn ask(pieces: bool, list: &[u8]) -> Res<()> {
    let client = ClientRequest::from_encoded_config_list(list)?;
    let mut request = client.encapsulate_stream(AllowStdIo::new(Frames))?;
    seal(pieces, &mut request).await?;
    open(pieces, request.response(AllowStdIo::new(Frame::default()))?).await
}

/// The gateway.
async fn answer(pieces: bool, keys: KeyConfig) -> Res<()> {
    let mut request = Server::new(keys)?.decapsulate_stream(AllowStdIo::new(Frame::default()));
    open(pieces, &mut request).await?;
    seal(pieces, request.response(AllowStdIo::new(Frames))?).await
}

/// Reads a message from standard input, and writes it to `sealed`.
async fn seal(pieces: bool, mut sealed: impl AsyncWrite + Unpin) -> Res<()> {
    let mut message = parse(&frame()?)?;
    let mut bytes = Vec::new();
    if pieces {
        message.write_bhttp(Mode::IndeterminateLength, &mut bytes)?;
        bytes.truncate(bytes.len() - 2); // the ends of content and trailer, which is empty
        sealed.write_all(&bytes).await?;
        loop {
            let content = frame()?;
            if content.is_empty() {
                break;
            }
            // The form of four bytes holds every length.
            let mut piece = (u32::try_from(content.len())? | 2 << 30)
                .to_be_bytes()
                .to_vec();
            piece.extend(content);
            sealed.write_all(&piece).await?;
            sealed.flush().await?;
        }
        sealed.write_all(&[0, 0]).await?;
    } else {
        loop {
            let content = frame()?;
            if content.is_empty() {
                break;
            }
            message.write_content(content);
        }
        message.write_bhttp(Mode::KnownLength, &mut bytes)?;
        sealed.write_all(&bytes).await?;
    }
    sealed.close().await?;
    end()
}

/// Reads a message from `opened` to its end, and writes it to standard output.
async fn open(pieces: bool, mut opened: impl AsyncRead + Unpin) -> Res<()> {
    if pieces {
        let mut message = Message::async_read(&mut opened);
        let head = message.header().await?;
        Frames.write_all(&text(head.control(), &head))?;
        let mut body = message.body()?;
        let mut buffer = vec![0; 1 << 15];
        loop {
            let n = body.read(&mut buffer).await?;
            if n == 0 {
                break;
            }
            Frames.write_all(&buffer[..n])?;
        }
        message.trailer().await?;
        opened.read_to_end(&mut Vec::new()).await?;
    } else {
        let mut bytes = Vec::new();
        opened.read_to_end(&mut bytes).await?;
        let message = Message::read_bhttp(&mut Cursor::new(&bytes[..]))?;
        Frames.write_all(&text(message.control(), message.header()))?;
        Frames.write_all(message.content())?;
    }
    end()
}

/// What a message's frame of lines says.
fn parse(lines: &[u8]) -> Res<Message> {
    let lines: Vec<&str> = std::str::from_utf8(lines)?.lines().collect();
    let (mut message, fields) = match &lines[..] {
        [method, scheme, authority, path, fields @ ..] if !method.starts_with(char::is_numeric) => {
            let of = |s: &str| s.as_bytes().to_vec();
            (
                Message::request(of(method), of(scheme), of(authority), of(path)),
                fields,
            )
        }
        [status, fields @ ..] => (
            Message::response(StatusCode::try_from(status.parse::<u16>()?)?),
            fields,
        ),
        [] => return Err("a message without lines".into()),
    };
    for field in fields {
        let (name, value) = field.split_once(": ").ok_or("a field without a value")?;
        message.put_header(name, value);
    }
    Ok(message)
}

/// The frame of lines for a message.
fn text(control: &ControlData, fields: &FieldSection) -> Vec<u8> {
    let mut lines = Vec::new();
    for part in [
        control.method(),
        control.scheme(),
        control.authority(),
        control.path(),
    ] {
        lines.extend(part.unwrap_or_default());
        lines.push(b'\n');
    }
    if let Some(status) = control.status() {
        lines = format!("{}\n", status.code()).into_bytes();
    }
    for field in fields.iter() {
        lines.extend([field.name(), b": ", field.value(), b"\n"].concat());
    }
    lines
}

fn keys(kem: &str, id: &str, seed: &str) -> Res<KeyConfig> {
    let suites = [Aead::Aes128Gcm, Aead::ChaCha20Poly1305]
        .map(|aead| SymmetricSuite::new(Kdf::HkdfSha256, aead));
    let kem = Kem::try_from(u16::from_str_radix(kem, 16)?)?;
    Ok(KeyConfig::derive(
        id.parse()?,
        kem,
        suites.to_vec(),
        &unhex(seed)?,
    )?)
}

fn unhex(text: &str) -> Res<Vec<u8>> {
    let digits = text.as_bytes().chunks(2).map(std::str::from_utf8);
    digits
        .map(|pair| Ok(u8::from_str_radix(pair?, 16)?))
        .collect()
}

/// Reads the next frame.
fn frame() -> Res<Vec<u8>> {
    let mut length = [0; 4];
    io::stdin().read_exact(&mut length)?;
    let mut bytes = vec![0; usize::try_from(u32::from_be_bytes(length))?];
    io::stdin().read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Reads frames up to an empty one as a stream.
#[derive(Default)]
struct Frame {
    bytes: Cursor<Vec<u8>>,
    ended: bool,
}

impl Read for Frame {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if !self.ended && self.bytes.position() == self.bytes.get_ref().len() as u64 {
            self.bytes = Cursor::new(frame().map_err(|e| io::Error::other(e.to_string()))?);
            self.ended = self.bytes.get_ref().is_empty();
        }
        self.bytes.read(to)
    }
}

/// Makes a frame of each piece that is written.
struct Frames;

impl Write for Frames {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !bytes.is_empty() {
            let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
            let mut out = io::stdout().lock();
            out.write_all(&length.to_be_bytes())?;
            out.write_all(bytes)?;
            out.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes the empty frame.
fn end() -> Res<()> {
    let mut out = io::stdout().lock();
    out.write_all(&[0; 4])?;
    Ok(out.flush()?)
}
