//! Addresses of containers: a private /16 for each engine. Pure, but for reading what the machine
//! uses already.
//!
//! The lower half holds containers that may reach the world, the upper half those that may not;
//! the firewall needs nothing else to tell them apart. The first address is the gateway's.

use std::{collections::BTreeSet, fmt, fs, net::Ipv4Addr};

use crate::{Error, NetworkMode, Result};

/// The networks from which an engine takes one: 10.64.0.0/16 to 10.127.0.0/16.
const CHOICES: std::ops::Range<u8> = 64..128;
/// How many addresses each half has.
const HALF: u32 = 1 << 15;

/// A private /16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subnet(u32);

impl Subnet {
    /// The /16 that holds an address.
    pub(crate) fn new(base: Ipv4Addr) -> Self {
        Self(u32::from(base) & 0xffff_0000)
    }

    pub(crate) fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(self.0 + 1)
    }

    /// The half whose containers may reach the world, as nft writes it.
    pub(crate) fn open_range(self) -> String {
        format!("{}/17", Ipv4Addr::from(self.0))
    }

    fn overlaps(self, other: &Network) -> bool {
        let mask = other.mask & 0xffff_0000;
        self.0 & mask == other.address & mask
    }

    /// Chooses the first network, from a start that `seed` picks, that overlaps none in use.
    fn choose(seed: u8, used: &[Network]) -> Option<Self> {
        let count = CHOICES.len() as u8;
        let nth = |i| Self::new(Ipv4Addr::new(10, CHOICES.start + (seed.wrapping_add(i)) % count, 0, 0));
        (0..count).map(nth).find(|subnet| !used.iter().any(|network| subnet.overlaps(network)))
    }

    /// Chooses a network that this machine does not use: not by a route, an address or a resolver.
    pub(crate) fn choose_here(seed: u8, resolvers: &[Ipv4Addr]) -> Result<Self> {
        let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
        let mut used = routes_of(&routes);
        used.extend(super::addresses()?.into_iter().map(|(_, address)| Network::host(address)));
        used.extend(resolvers.iter().copied().map(Network::host));
        Self::choose(seed, &used).ok_or_else(|| Error::NoFreeAddress {
            subnet: "10.64.0.0/10: every /16 of it is in use on this machine; name another one".into(),
        })
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/16", Ipv4Addr::from(self.0))
    }
}

/// A network that something else uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: u32,
    mask: u32,
}

impl Network {
    fn host(address: Ipv4Addr) -> Self {
        Self { address: address.into(), mask: u32::MAX }
    }
}

/// The networks in the text of /proc/net/route, without default routes.
fn routes_of(text: &str) -> Vec<Network> {
    let hex = |word: Option<&str>| Some(u32::from_str_radix(word?, 16).ok()?.swap_bytes());
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (address, mask) = (hex(words.nth(1))?, hex(words.nth(5))?);
            (mask != 0).then_some(Network { address, mask })
        })
        .collect()
}

/// The interface of the default route in the text of /proc/net/route.
pub(crate) fn default_interface(routes: &str) -> Option<&str> {
    routes.lines().skip(1).find_map(|line| {
        let mut words = line.split_whitespace();
        let (name, destination) = (words.next()?, words.next()?);
        (destination == "00000000" && words.nth(5)? == "00000000").then_some(name)
    })
}

/// Which addresses are taken. Goes round, so that one is used again as late as possible: the
/// kernel remembers connections of its last holder for a while.
#[derive(Debug)]
pub(crate) struct Addresses {
    subnet: Subnet,
    taken: BTreeSet<Ipv4Addr>,
    last: [u32; 2],
}

impl Addresses {
    pub(crate) fn new(subnet: Subnet) -> Self {
        // The network's own number and the gateway are never given out.
        Self { subnet, taken: BTreeSet::new(), last: [1, 0] }
    }

    /// Takes an address of the half that belongs to the mode.
    pub(crate) fn take(&mut self, mode: NetworkMode) -> Result<Ipv4Addr> {
        let half = usize::from(mode != NetworkMode::Nat);
        let first = if half == 0 { 2 } else { 1 };
        for step in 0..HALF {
            let number = self.last[half] + 1 + step;
            // The highest number of each half stays unused: the upper one is the broadcast address.
            let number = first + (number - first) % (HALF - 1 - first);
            let address = Ipv4Addr::from(self.subnet.0 + half as u32 * HALF + number);
            if self.taken.insert(address) {
                self.last[half] = number;
                return Ok(address);
            }
        }
        Err(Error::NoFreeAddress { subnet: self.subnet.to_string() })
    }

    pub(crate) fn give_back(&mut self, address: Ipv4Addr) {
        self.taken.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
wg0\t0000400A\t00000000\t0001\t0\t0\t0\t0000FEFF\t0\t0\t0
";

    #[test]
    fn a_network_in_use_is_passed_over() {
        let used = routes_of(ROUTES);
        assert_eq!(used, [Network { address: 0x0a40_0000, mask: 0xfffe_0000 }]);
        // 10.64.0.0/15 covers both 10.64 and 10.65.
        assert_eq!(Subnet::choose(0, &used), Some(Subnet::new(Ipv4Addr::new(10, 66, 0, 0))));
        assert_eq!(Subnet::choose(7, &used), Some(Subnet::new(Ipv4Addr::new(10, 71, 0, 0))));
        let all = [Network { address: 0x0a00_0000, mask: 0xff00_0000 }];
        assert_eq!(Subnet::choose(3, &all), None);
    }

    #[test]
    fn the_default_route_names_its_interface() {
        assert_eq!(default_interface(ROUTES), Some("eth0"));
        assert_eq!(default_interface(""), None);
    }

    #[test]
    fn halves_are_apart_and_addresses_come_back_late() {
        let mut addresses = Addresses::new(Subnet::new(Ipv4Addr::new(10, 70, 0, 0)));
        let first = addresses.take(NetworkMode::Nat).unwrap();
        assert_eq!(first, Ipv4Addr::new(10, 70, 0, 2));
        assert_eq!(addresses.take(NetworkMode::NodeOnly).unwrap(), Ipv4Addr::new(10, 70, 128, 1));
        addresses.give_back(first);
        assert_eq!(addresses.take(NetworkMode::Nat).unwrap(), Ipv4Addr::new(10, 70, 0, 3));
    }

    #[test]
    fn a_full_half_says_so_and_never_gives_out_reserved_addresses() {
        let mut addresses = Addresses::new(Subnet::new(Ipv4Addr::new(10, 70, 0, 0)));
        let mut given = BTreeSet::new();
        while let Ok(address) = addresses.take(NetworkMode::Nat) {
            assert!(given.insert(address));
        }
        assert!(!given.contains(&Ipv4Addr::new(10, 70, 0, 1)));
        assert!(given.iter().all(|a| a.octets()[2] < 128));
        assert_eq!(given.len() as u32, HALF - 3);
        addresses.give_back(Ipv4Addr::new(10, 70, 5, 5));
        assert_eq!(addresses.take(NetworkMode::Nat).unwrap(), Ipv4Addr::new(10, 70, 5, 5));
    }
}
