//! Test runs of programs, many in a row with the same packet or with one flow after the other.
//!
//! The kernel repeats a program with what the last run left of the packet. So what is repeated is a
//! small program in front, which writes the packet anew and goes on to the measured one by a tail call:
//!
//! ```text
//! next source port ─► the packet's bytes ─► tail call ─► the program, or one that does nothing
//! ```
#![expect(
    unsafe_code,
    reason = "the bpf system call takes a pointer to a structure of each command"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, bail};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::bench) enum Kind {
    /// A classifier.
    Tc,
    /// An XDP program.
    Xdp,
}

/// A packet, and how it comes.
#[derive(Clone, Debug)]
pub(in crate::bench) struct Packet {
    /// From its Ethernet header on; at most [`ROOM`].
    pub frame: Vec<u8>,
    /// Where its source port is.
    pub source_port: usize,
    /// The interface it comes in by.
    pub device: u32,
    /// What the source port grows by from run to run.
    pub step: u32,
    /// Where it came from through a tunnel: the peer's address, and the network identifier.
    pub tunnel: Option<([u8; 4], u32)>,
}

/// What a row of runs came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::bench) struct Ran {
    /// What the last run answered.
    pub action: i32,
    /// The mean time of a run, in nanoseconds.
    pub nanos: u32,
    /// The packet after the last run.
    pub frame: Vec<u8>,
}

/// Longest frame.
pub(in crate::bench) const ROOM: usize = 96;

/// The state of the program in front: next source port, step, a `bpf_tunnel_key`, the frame.
const STATE: usize = FRAME + ROOM;
const STEP: usize = 4;
const TUNNEL: usize = 8;
const TUNNEL_SIZE: usize = 44;
const FRAME: usize = 56;

/// What the program in front answers if it leads nowhere.
const NOWHERE: i32 = 0x7777;

/// Programs of a kind, to be run with one packet.
#[derive(Debug)]
pub(in crate::bench) struct Runs {
    packet: Packet,
    kind: Kind,
    /// Tables and programs that `front` uses stay as long as it does.
    front: OwnedFd,
    state: OwnedFd,
    next: OwnedFd,
    idle: OwnedFd,
}

impl Runs {
    /// Gets ready for runs in the network namespace of the calling thread.
    pub(in crate::bench) fn new(kind: Kind, packet: Packet) -> Result<Self> {
        if packet.frame.len() > ROOM {
            bail!("a frame of {} bytes: there is room for {ROOM}", packet.frame.len());
        }
        const ARRAY: u32 = 2;
        const PROG_ARRAY: u32 = 3;
        let value = u32::try_from(STATE).context("a small state")?;
        let state = create_map(ARRAY, value).context("make the state of a test run")?;
        let next = create_map(PROG_ARRAY, 4).context("make a table of programs")?;
        let idle = load(kind, &[with(0xb7, 0, 0, 0, 0), EXIT]).context("load an idle program")?;
        let front = load(kind, &front(kind, &packet, &state, &next)?)
            .context("load a program that repeats a packet")?;
        Ok(Self { packet, kind, front, state, next, idle })
    }

    /// Runs `program`, or one that does nothing, `repeat` times in a row. Source ports begin at the
    /// frame's own.
    pub(in crate::bench) fn run(
        &self,
        program: Option<BorrowedFd<'_>>,
        repeat: u32,
    ) -> Result<Ran> {
        let program = program.unwrap_or(self.idle.as_fd());
        update(&self.next, &raw_fd(program)?.to_ne_bytes()).context("choose the program")?;
        update(&self.state, &state(&self.packet)?).context("lay out the packet")?;
        let ran = self.test_run(repeat).context("run a program by hand")?;
        if ran.action == NOWHERE {
            bail!("the kernel took no tail call to the program");
        }
        Ok(ran)
    }

    fn test_run(&self, repeat: u32) -> io::Result<Ran> {
        const BPF_PROG_TEST_RUN: libc::c_int = 10;
        const IFINDEX: usize = 40; // in struct __sk_buff

        #[repr(C)]
        #[derive(Default)]
        struct TestRun {
            program: u32,
            answer: u32,
            size_in: u32,
            size_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
            context_size_in: u32,
            context_size_out: u32,
            context_in: u64,
            context_out: u64,
        }
        let mut context = match self.kind {
            Kind::Tc => vec![0; IFINDEX],
            // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
            Kind::Xdp => [[0; 4], short(self.packet.frame.len()).to_ne_bytes(), [0; 4]].concat(),
        };
        context.extend(self.packet.device.to_ne_bytes());
        if self.kind == Kind::Xdp {
            context.extend([0; 8]);
        }
        let mut frame = vec![0u8; ROOM + 256];
        let mut attributes = TestRun {
            program: self.front.as_raw_fd().cast_unsigned(),
            size_in: short(self.packet.frame.len()),
            size_out: short(frame.len()),
            data_in: self.packet.frame.as_ptr().addr() as u64,
            data_out: frame.as_mut_ptr().addr() as u64,
            repeat,
            context_size_in: short(context.len()),
            context_in: context.as_ptr().addr() as u64,
            ..TestRun::default()
        };
        // SAFETY: the structure is the head of what this command reads and writes, without padding; its
        // pointers are to live buffers of the lengths it says, of which the kernel writes to the one
        // that is borrowed for it.
        unsafe { bpf(BPF_PROG_TEST_RUN, &mut attributes) }?;
        frame.truncate(attributes.size_out as usize);
        Ok(Ran { action: attributes.answer.cast_signed(), nanos: attributes.duration, frame })
    }
}

/// Of a buffer here, all of which are short.
fn short(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn state(packet: &Packet) -> Result<Vec<u8>> {
    let mut state = vec![0; STATE];
    let port = packet.frame.get(packet.source_port..packet.source_port + 2);
    let port = port.context("find the packet's source port")?;
    let port = u32::from(u16::from_be_bytes([port[0], port[1]]));
    state[..STEP].copy_from_slice(&port.to_ne_bytes());
    state[STEP..TUNNEL].copy_from_slice(&packet.step.to_ne_bytes());
    if let Some((peer, vni)) = packet.tunnel {
        // struct bpf_tunnel_key: what is to be sent from an address looks as if received from there.
        const LOCAL: usize = TUNNEL + 28;
        state[TUNNEL..TUNNEL + 4].copy_from_slice(&vni.to_ne_bytes());
        state[LOCAL..LOCAL + 4].copy_from_slice(&u32::from_be_bytes(peer).to_ne_bytes());
    }
    state[FRAME..FRAME + packet.frame.len()].copy_from_slice(&packet.frame);
    Ok(state)
}

/// One instruction: opcode, destination and source register, offset, immediate; in host byte order.
type Instruction = [u8; 8];

const EXIT: Instruction = with(0x95, 0, 0, 0, 0);

const fn with(opcode: u8, to: u8, from: u8, offset: u8, immediate: i32) -> Instruction {
    let i = immediate.to_ne_bytes();
    let registers = if cfg!(target_endian = "big") { to << 4 | from } else { from << 4 | to };
    let [o, p] = (offset as i16).to_ne_bytes();
    [opcode, registers, o, p, i[0], i[1], i[2], i[3]]
}

/// The program in front.
fn front(kind: Kind, packet: &Packet, state: &OwnedFd, next: &OwnedFd) -> Result<Vec<Instruction>> {
    const MAP: u8 = 1;
    const MAP_VALUE: u8 = 2;
    const TAIL_CALL: i32 = 12;
    const SKB_STORE_BYTES: i32 = 9;
    const SKB_SET_TUNNEL_KEY: i32 = 21;
    const XDP_STORE_BYTES: i32 = 190;

    let copy = |to, from| with(0xbf, to, from, 0, 0);
    let set = |to, value| with(0xb7, to, 0, 0, value);
    let add = |to, value| with(0x07, to, 0, 0, value);
    let call = |helper| with(0x85, 0, 0, 0, helper);
    let table =
        |to, how, fd: &OwnedFd| [with(0x18, to, how, 0, fd.as_raw_fd()), with(0, 0, 0, 0, 0)];
    let immediate = |value: usize| i32::try_from(value).context("a small number");
    let port = u8::try_from(FRAME + packet.source_port).context("a source port near the front")?;
    let step = u8::try_from(STEP).context("a small number")?;

    let mut all = vec![copy(6, 1)];
    all.extend(table(7, MAP_VALUE, state));
    all.extend([
        with(0x61, 8, 7, 0, 0), // r8 = next port
        copy(9, 8),
        with(0xdc, 9, 0, 0, 16), // in network order
        with(0x6b, 7, 9, port, 0),
        with(0x61, 9, 7, step, 0),
        with(0x0f, 8, 9, 0, 0),
        with(0x63, 7, 8, 0, 0),
    ]);
    if packet.tunnel.is_some() {
        all.extend([copy(1, 6), copy(2, 7), add(2, immediate(TUNNEL)?)]);
        all.extend([set(3, immediate(TUNNEL_SIZE)?), set(4, 0), call(SKB_SET_TUNNEL_KEY)]);
    }
    all.extend([copy(1, 6), set(2, 0), copy(3, 7), add(3, immediate(FRAME)?)]);
    all.push(set(4, immediate(packet.frame.len())?));
    match kind {
        Kind::Tc => all.extend([set(5, 0), call(SKB_STORE_BYTES)]),
        Kind::Xdp => all.push(call(XDP_STORE_BYTES)),
    }
    all.push(copy(1, 6));
    all.extend(table(2, MAP, next));
    all.extend([set(3, 0), call(TAIL_CALL), set(0, NOWHERE), EXIT]);
    Ok(all)
}

fn create_map(kind: u32, value_size: u32) -> io::Result<OwnedFd> {
    const BPF_MAP_CREATE: libc::c_int = 0;
    // Type, size of a key, size of a value, number of entries.
    let mut attributes = [kind, 4, value_size, 1];
    // SAFETY: the numbers are the head of what this command reads, and no pointers.
    let answer = unsafe { bpf(BPF_MAP_CREATE, &mut attributes) }?;
    owned(answer)
}

/// Writes the only entry of a table.
fn update(map: &OwnedFd, value: &[u8]) -> io::Result<()> {
    const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;

    #[repr(C)]
    struct Update {
        map: u32,
        reserved: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let key = 0u32;
    let mut attributes = Update {
        map: map.as_raw_fd().cast_unsigned(),
        reserved: 0,
        key: std::ptr::from_ref(&key).addr() as u64,
        value: value.as_ptr().addr() as u64,
        flags: 0,
    };
    // SAFETY: the structure is what this command reads, without padding; the key is four bytes and the
    // value as long as the table's, and both outlive the call.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
}

fn load(kind: Kind, instructions: &[Instruction]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_XDP: u32 = 37;
    const LICENSE: &[u8] = b"GPL\0";

    #[repr(C)]
    #[derive(Default)]
    struct ProgLoad {
        kind: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log: [u64; 2],
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        device: u32,
        attach_type: u32,
    }
    let (kind, attach_type) = match kind {
        Kind::Tc => (3, 0),
        Kind::Xdp => (6, BPF_XDP), // as the programs it calls
    };
    let mut attributes = ProgLoad {
        kind,
        instruction_count: short(instructions.len()),
        instructions: instructions.as_ptr().addr() as u64,
        license: LICENSE.as_ptr().addr() as u64,
        attach_type,
        ..ProgLoad::default()
    };
    // SAFETY: the structure is the head of what this command reads, without padding; its two pointers
    // are to buffers of the lengths it says, which outlive the call.
    let answer = unsafe { bpf(BPF_PROG_LOAD, &mut attributes) }?;
    owned(answer)
}

fn raw_fd(fd: BorrowedFd<'_>) -> Result<u32> {
    u32::try_from(fd.as_raw_fd()).context("a descriptor")
}

fn owned(answer: i32) -> io::Result<OwnedFd> {
    let fd: RawFd = answer;
    // SAFETY: a command that makes something has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Calls a command of bpf(2); its answer.
///
/// # Safety
/// `attributes` is what `command` reads and writes, without padding, and its pointers are valid for
/// what the command does with them.
unsafe fn bpf<A>(command: libc::c_int, attributes: &mut A) -> io::Result<i32> {
    // SAFETY: passed on to the caller; pointer and size are those of one live value.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<A>())
    };
    match i32::try_from(answer) {
        Ok(answer) if answer >= 0 => Ok(answer),
        _ => Err(io::Error::last_os_error()),
    }
}
