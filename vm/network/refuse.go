package network

import (
	"cmp"
	"net/netip"
	"slices"
)

// refusedRange is a range that no machine reaches, whatever its policy.
type refusedRange struct {
	prefix netip.Prefix
	reason string
}

// Why a machine does not reach an address.
const (
	reasonPrivate   = "private range"
	reasonLinkLocal = "link-local"
	reasonMetadata  = "cloud metadata service"
	reasonCGNAT     = "carrier-grade NAT"
	reasonLoopback  = "loopback"
	reasonMulticast = "multicast"
	reasonReserved  = "reserved range"
	reasonMachines  = "other machines"
	reasonHost      = "the host itself"
	reasonIPv6      = "machines have no IPv6"
)

// refused are the ranges, the narrowest of overlapping ones first: IANA's special-purpose registries for IPv4 and
// IPv6 (RFC 6890) but for the documentation ranges, which lead nowhere, and what cloud providers serve secrets on.
// Addresses that embed an IPv4 address are not here: see Refusal.
func refused() []refusedRange {
	p := netip.MustParsePrefix
	return []refusedRange{
		{p("169.254.169.254/32"), reasonMetadata}, // AWS, Azure, Google, OpenStack, …
		{p("169.254.170.2/32"), reasonMetadata},   // AWS ECS
		{p("168.63.129.16/32"), reasonMetadata},   // Azure: public by its number, and answered by the host
		{p("100.100.100.200/32"), reasonMetadata}, // Alibaba
		{p("192.0.0.192/32"), reasonMetadata},     // Oracle
		{p("fd00:ec2::254/128"), reasonMetadata},  // AWS
		{p("0.0.0.0/8"), reasonReserved},
		{p("10.0.0.0/8"), reasonPrivate},
		{p("100.64.0.0/10"), reasonCGNAT},
		{p("127.0.0.0/8"), reasonLoopback},
		{p("169.254.0.0/16"), reasonLinkLocal},
		{p("172.16.0.0/12"), reasonPrivate},
		{p("192.0.0.0/24"), reasonReserved},
		{p("192.88.99.0/24"), reasonReserved}, // 6to4 relays
		{p("192.168.0.0/16"), reasonPrivate},
		{p("198.18.0.0/15"), reasonMachines}, // benchmarks, by the registry; our slots are here
		{p("224.0.0.0/4"), reasonMulticast},
		{p("240.0.0.0/4"), reasonReserved},
		{p("::/127"), reasonLoopback}, // and the unspecified address
		{p("100::/64"), reasonReserved},
		{p("2001::/23"), reasonReserved}, // Teredo, ORCHID and other protocols
		{p("5f00::/16"), reasonReserved},
		{p("fc00::/7"), reasonPrivate},
		{p("fe80::/10"), reasonLinkLocal},
		{p("fec0::/10"), reasonPrivate},
		{p("ff00::/8"), reasonMulticast},
	}
}

// embedding are the IPv6 prefixes whose addresses hold an IPv4 address, from that byte on.
func embedding() map[netip.Prefix]int {
	p := netip.MustParsePrefix
	return map[netip.Prefix]int{
		p("::/96"):          12, // IPv4-compatible
		p("64:ff9b::/96"):   12, // NAT64
		p("64:ff9b:1::/48"): 12,
		p("2002::/16"):      2, // 6to4
	}
}

// Refusal says why no machine reaches addr, whatever its policy; "" when none of that holds. An IPv6 address is always
// refused, because machines have only IPv4: one that embeds an IPv4 address is refused for that one's reason. The
// addresses of the host are not known here.
func Refusal(addr netip.Addr) string {
	if !addr.IsValid() {
		return reasonReserved
	}
	if r := rangeOf(addr.Unmap().WithZone("")); r != "" || addr.Is4() {
		return r
	}
	if addr.Is4In6() {
		return reasonIPv6
	}
	b := addr.As16()
	for prefix, at := range embedding() {
		if prefix.Contains(addr.WithZone("")) {
			if r := rangeOf(netip.AddrFrom4([4]byte(b[at : at+4]))); r != "" {
				return r
			}
		}
	}
	return reasonIPv6
}

func rangeOf(addr netip.Addr) string {
	for _, r := range refused() {
		if r.prefix.Contains(addr) {
			return r.reason
		}
	}
	return ""
}

// span is a range of IPv4 addresses, both ends included.
type span struct{ first, last netip.Addr }

// spans4 are the IPv4 ranges of refused and the given addresses: ascending, and neither overlapping nor adjacent, as a
// set of intervals has to be.
func spans4(addrs []netip.Addr) []span {
	var all []span
	for _, r := range refused() {
		if r.prefix.Addr().Is4() {
			all = append(all, span{r.prefix.Addr(), lastOf(r.prefix)})
		}
	}
	for _, a := range addrs {
		if a.Is4() {
			all = append(all, span{a, a})
		}
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Or(a.first.Compare(b.first), a.last.Compare(b.last)) })
	merged := all[:1]
	for _, s := range all[1:] {
		last := &merged[len(merged)-1]
		if s.first.Compare(last.last) <= 0 || s.first == last.last.Next() {
			if s.last.Compare(last.last) > 0 {
				last.last = s.last
			}
			continue
		}
		merged = append(merged, s)
	}
	return merged
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(b)
}
