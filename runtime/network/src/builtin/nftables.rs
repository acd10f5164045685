//! Tables, chains, rules and maps of nf_tables, as the messages that make them. Only what [`super::table`] needs of the language.

use netlink_packet_core::NLM_F_CREATE;
use nix::libc;

use super::nfnetlink::{self, Attributes, Message, NFNL_SUBSYS_NFTABLES, Parsed};

/// One table for both families: NAT in it came with Linux 5.2.
pub const NFPROTO_INET: u8 = 1;
/// Frames, as they come in at a bridge's ports.
pub const NFPROTO_BRIDGE: u8 = 7;
pub const NFPROTO_IPV4: u8 = 2;
pub const NFPROTO_IPV6: u8 = 10;

/// include/uapi/linux/netfilter/nf_tables.h
mod uapi {
    pub const NFTA_LIST_ELEM: u16 = 1;
    pub const NFTA_TABLE_NAME: u16 = 1;
    pub const NFTA_TABLE_FLAGS: u16 = 2;
    pub const NFTA_TABLE_USERDATA: u16 = 6;
    pub const NFTA_CHAIN_TABLE: u16 = 1;
    pub const NFTA_CHAIN_NAME: u16 = 3;
    pub const NFTA_CHAIN_HOOK: u16 = 4;
    pub const NFTA_CHAIN_POLICY: u16 = 5;
    pub const NFTA_CHAIN_TYPE: u16 = 7;
    pub const NFTA_HOOK_HOOKNUM: u16 = 1;
    pub const NFTA_HOOK_PRIORITY: u16 = 2;
    pub const NFTA_RULE_TABLE: u16 = 1;
    pub const NFTA_RULE_CHAIN: u16 = 2;
    pub const NFTA_RULE_EXPRESSIONS: u16 = 4;
    pub const NFTA_RULE_USERDATA: u16 = 7;
    pub const NFTA_EXPR_NAME: u16 = 1;
    pub const NFTA_EXPR_DATA: u16 = 2;
    pub const NFTA_SET_TABLE: u16 = 1;
    pub const NFTA_SET_NAME: u16 = 2;
    pub const NFTA_SET_FLAGS: u16 = 3;
    pub const NFTA_SET_KEY_TYPE: u16 = 4;
    pub const NFTA_SET_KEY_LEN: u16 = 5;
    pub const NFTA_SET_DATA_TYPE: u16 = 6;
    pub const NFTA_SET_DATA_LEN: u16 = 7;
    pub const NFTA_SET_ID: u16 = 10;
    pub const NFTA_SET_USERDATA: u16 = 13;
    pub const NFT_SET_MAP: u32 = 8;
    pub const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
    pub const NFTA_SET_ELEM_LIST_SET: u16 = 2;
    pub const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
    pub const NFTA_SET_ELEM_KEY: u16 = 1;
    pub const NFTA_SET_ELEM_DATA: u16 = 2;
    pub const NFTA_SET_ELEM_USERDATA: u16 = 6;
    pub const NFTA_DATA_VALUE: u16 = 1;
    pub const NFTA_DATA_VERDICT: u16 = 2;
    pub const NFTA_VERDICT_CODE: u16 = 1;
    pub const NFTA_VERDICT_CHAIN: u16 = 2;
    /// nft's own (NFTNL_UDATA_*_COMMENT): kind, length, text with its NUL.
    pub const UDATA_COMMENT: u8 = 0;
}
use uapi::*;

/// Registers of four bytes (NFT_REG32_00 …). A value longer than that takes those after its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register(pub u32);

impl Register {
    const REG32_00: u32 = 8;
    const VERDICT: u32 = 0;

    fn number(self) -> u32 {
        Self::REG32_00 + self.0
    }
}

#[derive(Debug, Clone, Copy)]
pub enum Comparison {
    Equal = 0,
    Different = 1,
}

#[derive(Debug, Clone, Copy)]
pub enum Meta {
    InterfaceIn = 6,
    InterfaceOut = 7,
    Family = 15,
    Protocol = 16,
}

#[derive(Debug, Clone, Copy)]
pub enum Header {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// Facts of the tracked connection; addresses and ports are those of its first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracked {
    Status = 2,
    Port = 12,
    Address4 = 20,
    Address6 = 22,
}

#[derive(Debug, Clone, Copy)]
pub enum Verdict<'a> {
    Drop,
    Return,
    Jump(&'a str),
}

#[derive(Debug, Clone, Copy)]
pub enum Hook {
    PreRouting = 0,
    LocalOut = 3,
    PostRouting = 4,
}

impl Message {
    /// The same for the bridge's family, whose tables are others.
    pub fn for_frames(self) -> Self {
        self.of_family(NFPROTO_BRIDGE)
    }

    pub fn of_family(mut self, family: u8) -> Self {
        self.family = family;
        self
    }
}

fn message(what: &'static str, kind: libc::c_int, flags: u16, attributes: Attributes) -> Message {
    Message {
        what,
        subsystem: NFNL_SUBSYS_NFTABLES,
        kind: kind as u8,
        family: NFPROTO_INET,
        flags,
        attributes,
    }
}

fn comment(kind: u16, text: &str) -> Attributes {
    // As long as nft itself lets a comment be.
    let text = &text.as_bytes()[..text.len().min(127)];
    let mut bytes = vec![UDATA_COMMENT, text.len() as u8 + 1];
    bytes.extend(text);
    bytes.push(0);
    Attributes::new().bytes(kind, &bytes)
}

pub fn add_table(table: &str, why: &str) -> Message {
    let attributes = Attributes::new()
        .name(NFTA_TABLE_NAME, table)
        .number(NFTA_TABLE_FLAGS, 0)
        .chain(comment(NFTA_TABLE_USERDATA, why));
    message(
        "add table",
        libc::NFT_MSG_NEWTABLE,
        NLM_F_CREATE,
        attributes,
    )
}

pub fn delete_table(table: &str) -> Message {
    let attributes = Attributes::new().name(NFTA_TABLE_NAME, table);
    message("delete table", libc::NFT_MSG_DELTABLE, 0, attributes)
}

pub fn add_base_chain(table: &str, name: &str, kind: &str, hook: Hook, priority: i32) -> Message {
    const NF_ACCEPT: u32 = 1;
    let attributes = Attributes::new()
        .name(NFTA_CHAIN_TABLE, table)
        .name(NFTA_CHAIN_NAME, name)
        .nested(
            NFTA_CHAIN_HOOK,
            Attributes::new()
                .number(NFTA_HOOK_HOOKNUM, hook as u32)
                .number(NFTA_HOOK_PRIORITY, priority as u32),
        )
        .number(NFTA_CHAIN_POLICY, NF_ACCEPT)
        .name(NFTA_CHAIN_TYPE, kind);
    message(
        "add chain",
        libc::NFT_MSG_NEWCHAIN,
        NLM_F_CREATE,
        attributes,
    )
}

pub fn add_chain(table: &str, name: &str) -> Message {
    let attributes = Attributes::new()
        .name(NFTA_CHAIN_TABLE, table)
        .name(NFTA_CHAIN_NAME, name);
    message(
        "add chain",
        libc::NFT_MSG_NEWCHAIN,
        NLM_F_CREATE,
        attributes,
    )
}

/// A field of a key or of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    Address4,
    Address6,
    Protocol,
    Port,
    Mac,
    InterfaceName,
}

impl Field {
    /// nft's number of the type, for its listing alone.
    fn kind(self) -> u32 {
        match self {
            Self::Address4 => 7,
            Self::Address6 => 8,
            Self::Mac => 9,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::InterfaceName => 41,
        }
    }

    /// In registers of four bytes.
    pub fn bytes(self) -> u32 {
        match self {
            Self::Address4 | Self::Protocol | Self::Port => 4,
            Self::Mac => 8,
            Self::Address6 | Self::InterfaceName => 16,
        }
    }
}

fn kind_and_length(fields: &[Field]) -> (u32, u32) {
    fields.iter().fold((0, 0), |(kind, length), field| {
        (kind << 6 | field.kind(), length + field.bytes())
    })
}

/// A set, or a map where it has values. `id`: its own in the transaction.
pub fn add_set(table: &str, name: &str, key: &[Field], value: &[Field], id: u32) -> Message {
    let (kind, length) = kind_and_length(key);
    let mut attributes = Attributes::new()
        .name(NFTA_SET_TABLE, table)
        .name(NFTA_SET_NAME, name)
        .number(
            NFTA_SET_FLAGS,
            if value.is_empty() { 0 } else { NFT_SET_MAP },
        )
        .number(NFTA_SET_KEY_TYPE, kind)
        .number(NFTA_SET_KEY_LEN, length)
        .number(NFTA_SET_ID, id);
    if !value.is_empty() {
        let (kind, length) = kind_and_length(value);
        attributes = attributes
            .number(NFTA_SET_DATA_TYPE, kind)
            .number(NFTA_SET_DATA_LEN, length);
    }
    if key == [Field::InterfaceName] {
        // nft's own: without it, its listing shows the names backwards.
        const KEY_BYTE_ORDER: u8 = 0;
        const HOST_ENDIAN: u32 = 1;
        let mut bytes = vec![KEY_BYTE_ORDER, 4];
        bytes.extend(HOST_ENDIAN.to_ne_bytes());
        attributes = attributes.bytes(NFTA_SET_USERDATA, &bytes);
    }
    message("add map", libc::NFT_MSG_NEWSET, NLM_F_CREATE, attributes)
}

/// An element of a set, with its value where the set is a map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

fn element_message(
    what: &'static str,
    kind: libc::c_int,
    flags: u16,
    (table, set): (&str, &str),
    element: Attributes,
) -> Message {
    let attributes = Attributes::new()
        .name(NFTA_SET_ELEM_LIST_TABLE, table)
        .name(NFTA_SET_ELEM_LIST_SET, set)
        .nested(
            NFTA_SET_ELEM_LIST_ELEMENTS,
            Attributes::new().nested(NFTA_LIST_ELEM, element),
        );
    message(what, kind, flags, attributes)
}

pub fn add_element(table: &str, set: &str, element: &Element, why: &str) -> Message {
    let value = |bytes: &[u8]| Attributes::new().bytes(NFTA_DATA_VALUE, bytes);
    let mut attributes = Attributes::new().nested(NFTA_SET_ELEM_KEY, value(&element.key));
    if !element.value.is_empty() {
        attributes = attributes.nested(NFTA_SET_ELEM_DATA, value(&element.value));
    }
    if !why.is_empty() {
        attributes = attributes.chain(comment(NFTA_SET_ELEM_USERDATA, why));
    }
    element_message(
        "add element",
        libc::NFT_MSG_NEWSETELEM,
        NLM_F_CREATE,
        (table, set),
        attributes,
    )
}

pub fn delete_element(table: &str, set: &str, element: &Element) -> Message {
    let key = Attributes::new().bytes(NFTA_DATA_VALUE, &element.key);
    element_message(
        "delete element",
        libc::NFT_MSG_DELSETELEM,
        0,
        (table, set),
        Attributes::new().nested(NFTA_SET_ELEM_KEY, key),
    )
}

pub fn list_elements(table: &str, set: &str) -> Message {
    let attributes = Attributes::new()
        .name(NFTA_SET_ELEM_LIST_TABLE, table)
        .name(NFTA_SET_ELEM_LIST_SET, set);
    message("list elements", libc::NFT_MSG_GETSETELEM, 0, attributes)
}

/// The elements in an answer to [`list_elements`].
pub fn elements(attributes: &[u8]) -> Vec<Element> {
    let all = Parsed::new(attributes);
    nfnetlink::list(all.bytes(NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default())
        .map(|(_, element)| {
            let element = Parsed::new(element);
            let value = |kind| {
                element
                    .nested(kind)
                    .bytes(NFTA_DATA_VALUE)
                    .unwrap_or_default()
                    .to_vec()
            };
            Element {
                key: value(NFTA_SET_ELEM_KEY),
                value: value(NFTA_SET_ELEM_DATA),
            }
        })
        .collect()
}

pub fn list_rules(table: &str) -> Message {
    let attributes = Attributes::new().name(NFTA_RULE_TABLE, table);
    message("list rules", libc::NFT_MSG_GETRULE, 0, attributes)
}

/// Whether an answer to [`list_rules`] is of this table: kernels before 4.7 list those of all.
pub fn is_rule_of(table: &str, attributes: &[u8]) -> bool {
    Parsed::new(attributes).text(NFTA_RULE_TABLE) == Some(table)
}

/// Only those of one chain (Linux 4.7; before, all are listed).
pub fn list_rules_of(table: &str, chain: &str) -> Message {
    let mut message = list_rules(table);
    message.attributes = message.attributes.name(NFTA_RULE_CHAIN, chain);
    message
}

pub fn is_rule_of_chain(table: &str, chain: &str, attributes: &[u8]) -> bool {
    is_rule_of(table, attributes) && Parsed::new(attributes).text(NFTA_RULE_CHAIN) == Some(chain)
}

/// The expressions of a rule, by their names.
pub fn expressions(rule: &[u8]) -> impl Iterator<Item = (&str, Parsed<'_>)> {
    let all = Parsed::new(rule).bytes(NFTA_RULE_EXPRESSIONS);
    nfnetlink::list(all.unwrap_or_default()).filter_map(|(_, expression)| {
        let expression = Parsed::new(expression);
        Some((
            expression.text(NFTA_EXPR_NAME)?,
            expression.nested(NFTA_EXPR_DATA),
        ))
    })
}

/// What a `cmp` compares with.
pub fn compared<'a>(cmp: &Parsed<'a>) -> &'a [u8] {
    const DATA: u16 = 3;
    cmp.nested(DATA).bytes(NFTA_DATA_VALUE).unwrap_or_default()
}

/// Whether an `immediate` is the verdict that drops.
pub fn is_drop(immediate: &Parsed<'_>) -> bool {
    const DATA: u16 = 2;
    let verdict = immediate.nested(DATA).nested(NFTA_DATA_VERDICT);
    verdict.bytes(NFTA_VERDICT_CODE) == Some(&[0; 4])
}

/// A chain at a hook.
#[derive(Debug)]
pub struct BaseChain {
    pub table: String,
    pub name: String,
    pub hook: u32,
    pub policy: u32,
}

pub fn list_chains() -> Message {
    message("list chains", libc::NFT_MSG_GETCHAIN, 0, Attributes::new())
}

/// An answer to [`list_chains`], where it is a base chain.
pub fn base_chain(attributes: &[u8]) -> Option<BaseChain> {
    let chain = Parsed::new(attributes);
    let number = |of: &Parsed<'_>, kind| Some(u32::from_be_bytes(of.bytes(kind)?.try_into().ok()?));
    Some(BaseChain {
        table: chain.text(NFTA_CHAIN_TABLE)?.to_owned(),
        name: chain.text(NFTA_CHAIN_NAME)?.to_owned(),
        hook: number(&chain.nested(NFTA_CHAIN_HOOK), NFTA_HOOK_HOOKNUM)?,
        policy: number(&chain, NFTA_CHAIN_POLICY)?,
    })
}

/// A rule: expressions that are evaluated one after the other until one does not match.
#[derive(Debug, Default)]
pub struct Rule {
    expressions: Attributes,
    comment: Attributes,
}

impl Rule {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn add_to(self, table: &str, chain: &str) -> Message {
        const NLM_F_APPEND: u16 = 0x800;
        let attributes = Attributes::new()
            .name(NFTA_RULE_TABLE, table)
            .name(NFTA_RULE_CHAIN, chain)
            .nested(NFTA_RULE_EXPRESSIONS, self.expressions)
            .chain(self.comment);
        message(
            "add rule",
            libc::NFT_MSG_NEWRULE,
            NLM_F_CREATE | NLM_F_APPEND,
            attributes,
        )
    }

    /// Says in a listing what the rule is for.
    pub fn comment(mut self, why: &str) -> Self {
        self.comment = comment(NFTA_RULE_USERDATA, why);
        self
    }

    fn expression(mut self, name: &str, data: Attributes) -> Self {
        let expression = Attributes::new()
            .name(NFTA_EXPR_NAME, name)
            .nested(NFTA_EXPR_DATA, data);
        self.expressions = self.expressions.nested(NFTA_LIST_ELEM, expression);
        self
    }

    pub fn load_meta(self, what: Meta, to: Register) -> Self {
        const DREG: u16 = 1;
        const KEY: u16 = 2;
        let data = Attributes::new()
            .number(KEY, what as u32)
            .number(DREG, to.number());
        self.expression("meta", data)
    }

    pub fn load_payload(self, header: Header, offset: u32, length: u32, to: Register) -> Self {
        const DREG: u16 = 1;
        const BASE: u16 = 2;
        const OFFSET: u16 = 3;
        const LEN: u16 = 4;
        let data = Attributes::new()
            .number(DREG, to.number())
            .number(BASE, header as u32)
            .number(OFFSET, offset)
            .number(LEN, length);
        self.expression("payload", data)
    }

    pub fn load_tracked(self, what: Tracked, to: Register) -> Self {
        const DREG: u16 = 1;
        const KEY: u16 = 2;
        const DIRECTION: u16 = 3;
        const ORIGINAL: u8 = 0;
        let mut data = Attributes::new()
            .number(KEY, what as u32)
            .number(DREG, to.number());
        if what != Tracked::Status {
            data = data.bytes(DIRECTION, &[ORIGINAL]);
        }
        self.expression("ct", data)
    }

    /// The kind of address (RTN_LOCAL, …) that the packet's destination is to this host.
    pub fn load_destination_kind(self, to: Register) -> Self {
        const DREG: u16 = 1;
        const RESULT: u16 = 2;
        const FLAGS: u16 = 3;
        const ADDRTYPE: u32 = 3;
        const F_DADDR: u32 = 1 << 1;
        let data = Attributes::new()
            .number(DREG, to.number())
            .number(RESULT, ADDRTYPE)
            .number(FLAGS, F_DADDR);
        self.expression("fib", data)
    }

    pub fn mask(self, register: Register, mask: &[u8]) -> Self {
        const SREG: u16 = 1;
        const DREG: u16 = 2;
        const LEN: u16 = 3;
        const MASK: u16 = 4;
        const XOR: u16 = 5;
        let value = |bytes: &[u8]| Attributes::new().bytes(NFTA_DATA_VALUE, bytes);
        let data = Attributes::new()
            .number(SREG, register.number())
            .number(DREG, register.number())
            .number(LEN, mask.len() as u32)
            .nested(MASK, value(mask))
            .nested(XOR, value(&vec![0; mask.len()]));
        self.expression("bitwise", data)
    }

    pub fn compare(self, register: Register, how: Comparison, value: &[u8]) -> Self {
        const SREG: u16 = 1;
        const OP: u16 = 2;
        const DATA: u16 = 3;
        let data = Attributes::new()
            .number(SREG, register.number())
            .number(OP, how as u32)
            .nested(DATA, Attributes::new().bytes(NFTA_DATA_VALUE, value));
        self.expression("cmp", data)
    }

    /// Matches where the map has the key; loads its value.
    pub fn look_up(self, map: &str, key: Register, value: Register) -> Self {
        const SET: u16 = 1;
        const SREG: u16 = 2;
        const DREG: u16 = 3;
        let data = Attributes::new()
            .name(SET, map)
            .number(SREG, key.number())
            .number(DREG, value.number());
        self.expression("lookup", data)
    }

    /// Matches where the set has the key.
    pub fn when_in(self, set: &str, key: Register) -> Self {
        self.member(set, key, 0)
    }

    /// Matches where the set does not have the key.
    pub fn unless_in(self, set: &str, key: Register) -> Self {
        const F_INV: u32 = 1;
        self.member(set, key, F_INV)
    }

    fn member(self, set: &str, key: Register, flags: u32) -> Self {
        const SET: u16 = 1;
        const SREG: u16 = 2;
        const FLAGS: u16 = 5;
        let data = Attributes::new()
            .name(SET, set)
            .number(SREG, key.number())
            .number(FLAGS, flags);
        self.expression("lookup", data)
    }

    pub fn dnat(self, family: u8, address: Register, port: Register) -> Self {
        const TYPE: u16 = 1;
        const FAMILY: u16 = 2;
        const REG_ADDR_MIN: u16 = 3;
        const REG_PROTO_MIN: u16 = 5;
        const DNAT: u32 = 1;
        let data = Attributes::new()
            .number(TYPE, DNAT)
            .number(FAMILY, u32::from(family))
            .number(REG_ADDR_MIN, address.number())
            .number(REG_PROTO_MIN, port.number());
        self.expression("nat", data)
    }

    /// Source NAT to the address of the link that the packet leaves through. Ports are drawn at random: two connections that are made at
    /// once must not be given the same one (the loser's first packet is dropped).
    pub fn masquerade(self) -> Self {
        const FLAGS: u16 = 1;
        const PROTO_RANDOM_FULLY: u32 = 1 << 4;
        self.expression("masq", Attributes::new().number(FLAGS, PROTO_RANDOM_FULLY))
    }

    pub fn verdict(self, verdict: Verdict<'_>) -> Self {
        const DREG: u16 = 1;
        const DATA: u16 = 2;
        let (code, chain) = match verdict {
            Verdict::Drop => (0, None),
            Verdict::Return => (-5i32, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
        };
        let mut inner = Attributes::new().number(NFTA_VERDICT_CODE, code as u32);
        if let Some(chain) = chain {
            inner = inner.name(NFTA_VERDICT_CHAIN, chain);
        }
        let data = Attributes::new()
            .number(DREG, Register::VERDICT)
            .nested(DATA, Attributes::new().nested(NFTA_DATA_VERDICT, inner));
        self.expression("immediate", data)
    }
}
