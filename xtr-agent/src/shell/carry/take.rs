//! A client comes from another proxy: its connections are asked for, and entered here.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use lisp_proto::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout, timeout_at};
use wg_device::{Entered, Flow, NetNs, connect_through};

use super::books::Taken;
use super::limits::{AGAIN, FLOWS_PER_CLIENT, PATIENCE, PORT, REFUSED, SILENCE, TAKING};
use super::table::{Table, delete_each};
use super::wire::{self, Frame};
use crate::shell::clock::Clock;

/// Where the way to the other proxy begins.
pub(super) struct Way {
    pub(super) netns: Option<NetNs>,
    /// The data interface.
    pub(super) device: String,
    /// EIDs of ours; the other proxy was told one of them.
    pub(super) sources: Vec<IpAddr>,
    /// The EID of the other proxy.
    pub(super) to: IpAddr,
}

/// A conversation with a proxy that has the connections of a client.
pub(super) struct Taking {
    stream: TcpStream,
    received: Vec<u8>,
    table: Arc<Table>,
    pub(super) taken: Taken,
}

impl Taking {
    /// Asks for the connections of `client`, and enters those that there are now.
    ///
    /// # Errors
    /// The other proxy is not reached in time, or does not let us have them.
    pub(super) async fn begin(
        clock: Clock,
        way: &Way,
        (client, public): (IpNet, &[IpAddr]),
        table: &Arc<Table>,
    ) -> io::Result<Self> {
        let start = clock.now();
        let mut pause = AGAIN;
        let mut sources = way.sources.iter().cycle();
        let mut left = way.sources.len();
        loop {
            let source = *sources.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
            let tried = async {
                let mut stream = connect(way, source).await?;
                stream.write_all(&wire::hello(client)).await?;
                let mut taking = Self {
                    stream,
                    received: Vec::new(),
                    table: Arc::clone(table),
                    taken: Taken::new(client, public.to_vec()),
                };
                taking.batch().await.map(|_| taking)
            };
            let tried = timeout_at(clock.instant(start + TAKING), tried).await?;
            match tried {
                Err(error) if may_change(&error, clock.now(), start) => left -= 1,
                tried => return tried,
            }
            if left == 0 {
                sleep(pause).await;
                pause *= 2;
                left = way.sources.len();
            }
        }
    }

    /// Takes in what changes, until the client has gone there.
    ///
    /// # Errors
    /// The other proxy falls silent, or says something that makes no sense.
    pub(super) async fn go_on(&mut self) -> io::Result<()> {
        while !timeout(SILENCE, self.batch()).await?? {}
        Ok(())
    }

    /// Takes in what has changed and says what became of it; returns whether that was the last.
    async fn batch(&mut self) -> io::Result<bool> {
        let (mut come, mut gone) = (Vec::new(), Vec::new());
        let is_last = loop {
            match self.frame().await? {
                Frame::Flow(flow) => come.extend(self.taken.take(&flow)),
                Frame::Gone(flow) => gone.extend(self.taken.give_up(&flow).then_some(flow)),
                Frame::Batch => break false,
                Frame::End => break true,
            }
            if come.len() + gone.len() > FLOWS_PER_CLIENT * 2 {
                return Err(invalid("more connections than there may be"));
            }
        };
        self.carry_out(come, gone).await?;
        let (held, refused) = self.taken.counts();
        let answer = wire::answer(held, refused);
        timeout(PATIENCE, self.stream.write_all(&answer)).await??;
        Ok(is_last)
    }

    async fn carry_out(&mut self, come: Vec<Flow>, gone: Vec<Flow>) -> io::Result<()> {
        if come.is_empty() && gone.is_empty() {
            return Ok(());
        }
        let changed = self.table.change(move |conntrack| {
            delete_each(conntrack, &gone)?;
            let mut entered = Vec::with_capacity(come.len());
            for flow in come {
                let is_there = conntrack.enter(&flow)? == Entered::There;
                entered.push((flow, is_there));
            }
            Ok(entered)
        });
        for (flow, is_there) in changed.await? {
            self.taken.entered(&flow, is_there);
        }
        Ok(())
    }

    async fn frame(&mut self) -> io::Result<Frame> {
        loop {
            let read = wire::read(&self.received);
            if let Some((frame, length)) = read.map_err(|_| invalid("no frame begins like that"))? {
                self.received.drain(..length);
                return Ok(frame);
            }
            let mut more = [0; wire::FRAME * 16];
            let length = self.stream.read(&mut more).await?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.received.extend(more.get(..length).unwrap_or_default());
        }
    }
}

async fn connect(way: &Way, source: IpAddr) -> io::Result<TcpStream> {
    let ends = [(source, 0), (way.to, PORT)].map(SocketAddr::from);
    connect_through(way.netns.as_ref(), &way.device, ends).await
}

/// Whether the other proxy may only not have heard of the move yet.
fn may_change(error: &io::Error, now: Timestamp, start: Timestamp) -> bool {
    let kind = error.kind();
    let ended = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset];
    ended.contains(&kind) || kind == io::ErrorKind::ConnectionRefused && now - start < REFUSED
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
