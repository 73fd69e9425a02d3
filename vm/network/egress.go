package network

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/terraphim/tgr/vm"
)

const (
	maxAllow = 1000 // entries of an allow list
	maxName  = 253  // bytes of a host name, RFC 1035
)

// policy is a vm.Egress that was checked. It is not changed once it is made.
type policy struct {
	mode  vm.EgressMode
	hosts map[string]ports // of "example.com"
	below map[string]ports // "example.com": of "*.example.com"
	extra []uint16         // ports other than 80 and 443 that the list names, ascending
}

// ports are those that a host of the list may be reached at.
type ports map[uint16]bool

func newPolicy(e vm.Egress) (*policy, error) {
	p := &policy{mode: e.Mode, hosts: map[string]ports{}, below: map[string]ports{}}
	switch e.Mode {
	case "":
		p.mode = vm.EgressNone
	case vm.EgressNone, vm.EgressOpen, vm.EgressAllow:
	default:
		return nil, fmt.Errorf("egress %q: want none, open or allow", e.Mode)
	}
	if p.mode != vm.EgressAllow {
		return p, nil
	}
	if len(e.Allow) > maxAllow {
		return nil, fmt.Errorf("egress: %d hosts are allowed, the limit is %d", len(e.Allow), maxAllow)
	}
	seen := [1 << 16]bool{80: true, 443: true}
	for _, entry := range e.Allow {
		host, port, err := parseEntry(entry)
		if err != nil {
			return nil, err
		}
		into := p.hosts
		if rest, ok := strings.CutPrefix(host, "*."); ok {
			into, host = p.below, rest
		}
		if into[host] == nil {
			into[host] = ports{}
		}
		if port == 0 {
			into[host][80], into[host][443] = true, true
			continue
		}
		into[host][port] = true
		seen[port] = true
	}
	for port, ok := range seen {
		if ok && port != 80 && port != 443 {
			p.extra = append(p.extra, uint16(port))
		}
	}
	if len(p.extra) > 64 {
		return nil, fmt.Errorf("egress: the allow list names %d ports, the limit is 64", len(p.extra))
	}
	return p, nil
}

// CheckEgress says what is wrong with e, if anything is.
func CheckEgress(e vm.Egress) error {
	_, err := newPolicy(e)
	return err
}

// parseEntry reads an entry of an allow list. Port 0 is none.
func parseEntry(entry string) (host string, port uint16, err error) {
	host, text, found := strings.Cut(entry, ":")
	if found {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil || n == 0 {
			return "", 0, fmt.Errorf("egress: allowed host %q: want a port from 1 to 65535 after the colon", entry)
		}
		port = uint16(n)
	}
	name, ok := canonical(strings.TrimPrefix(host, "*."))
	if !ok || !strings.Contains(name, ".") && strings.HasPrefix(host, "*.") {
		return "", 0, fmt.Errorf("egress: allowed host %q: want a name such as example.com, *.example.com or example.com:8443", entry)
	}
	if strings.HasPrefix(host, "*.") {
		name = "*." + name
	}
	return name, port, nil
}

// canonical is a host name in lower case and without the final dot. False is for what is no host name: an address, an
// empty label, a byte that does not belong into one. Underscores are let through, as resolvers do.
func canonical(name string) (string, bool) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if name == "" || len(name) > maxName {
		return "", false
	}
	digits := true // of the last label
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return "", false
		}
		digits = true
		for _, c := range []byte(label) {
			digits = digits && c >= '0' && c <= '9'
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return "", false
			}
		}
	}
	return name, !digits // 10.0.0.1 ends with a number, and no name does
}

// allows says whether a canonical name may be reached at port; port 0 is any: whether it may be resolved.
func (p *policy) allows(name string, port uint16) bool {
	if p.mode != vm.EgressAllow {
		return p.mode == vm.EgressOpen
	}
	ok := func(in ports) bool { return in != nil && (port == 0 || in[port]) }
	if ok(p.hosts[name]) {
		return true
	}
	for rest := name; ; {
		var found bool
		if _, rest, found = strings.Cut(rest, "."); !found {
			return false
		}
		if ok(p.below[rest]) {
			return true
		}
	}
}
