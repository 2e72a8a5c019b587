//! Which addresses a bundle may come from. A desired state names any URL, and this host and its neighbours on
//! the link have services that answer whoever is near, such as a cloud's metadata.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// What is said of an address that is refused.
const REFUSED: &str =
    "its address is this host's, link-local or a metadata service's; `[models] local_addresses = true` allows it";
/// Metadata services outside the link-local ranges: Alibaba Cloud's, and EC2's over IPv6.
const METADATA: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254))];

/// Whether nothing is fetched from there unless the config says so.
pub fn is_local(address: IpAddr) -> bool {
    let address = canonical(address);
    let special = address.is_loopback() || address.is_unspecified() || address.is_multicast();
    let near = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    special || near || METADATA.contains(&address)
}

/// The IPv4 address within, where there is one: mapped, or translated (64:ff9b::/96).
fn canonical(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => match v6.segments() {
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
                let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
                IpAddr::V4(Ipv4Addr::new(a, b, c, d))
            }
            _ => IpAddr::V6(v6),
        },
        v4 => v4,
    }
}

/// Refuses a URL whose host is such an address. Names are checked when they are resolved: [`OthersOnly`].
///
/// # Errors
/// Why.
pub fn check(url: &Url) -> Result<(), String> {
    let host = url.host_str().unwrap_or_default();
    let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    if literal.is_ok_and(is_local) { Err(REFUSED.into()) } else { Ok(()) }
}

/// Resolves names to addresses of other hosts only: the address that is checked is the one that is connected to.
pub struct OthersOnly;

impl Resolve for OthersOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let others: Vec<SocketAddr> = found.iter().copied().filter(|a| !is_local(a.ip())).collect();
            if others.is_empty() && !found.is_empty() {
                return Err(REFUSED.into());
            }
            Ok(Box::new(others.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_its_link_and_metadata_services_are_refused_however_they_are_written() {
        for url in [
            "http://127.0.0.1/x",
            "http://127.1/x",
            "http://2130706433/x",
            "http://0x7f.0.0.1/x",
            "http://[::1]:8420/x",
            "http://[::ffff:127.0.0.1]/x",
            "http://[64:ff9b::a9fe:a9fe]/x",
            "http://169.254.169.254/latest/meta-data",
            "http://[fe80::1]/x",
            "http://[fd00:ec2::254]/x",
            "http://100.100.100.200/x",
            "http://0.0.0.0/x",
            "http://224.0.0.1/x",
        ] {
            assert!(check(&Url::parse(url).expect("a URL")).is_err(), "{url}");
        }
        for url in ["http://10.0.0.7/x", "https://192.168.1.2/x", "https://models.example.com/x", "http://[fd12::1]/x"]
        {
            assert!(check(&Url::parse(url).expect("a URL")).is_ok(), "{url}");
        }
    }

    #[tokio::test]
    async fn names_of_this_host_are_refused_when_they_are_resolved() {
        let resolved = OthersOnly.resolve("localhost".parse().expect("a name")).await;
        assert!(resolved.err().expect("refused").to_string().contains("local_addresses"));
    }
}
