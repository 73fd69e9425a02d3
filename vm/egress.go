package vm

import (
	"fmt"
	"net/netip"
)

// EgressMode is how much of the network a machine may reach.
type EgressMode string

// The modes of Egress. In every one of them a machine reaches no private range, no link-local or metadata address,
// no address of its host, and no other machine.
const (
	EgressNone  EgressMode = "none"  // nothing, not even names
	EgressOpen  EgressMode = "open"  // the public internet
	EgressAllow EgressMode = "allow" // hosts of a list, by name
)

// Egress says what a machine may reach of the network. The zero value is EgressNone.
type Egress struct {
	Mode EgressMode
	// Allow is the list of EgressAllow: host names such as "example.com" or "*.example.com" (which is every name
	// below, and not example.com itself), each with an optional ":port". Without a port it is 80 and 443.
	Allow []string
	// Limits bound how much the machine takes of the network.
	Limits NetLimits
	// Denied, if not nil, is told what the machine asked for and did not get: the same thing once, and only so many
	// things. It is called from goroutines of the network's, must not block, and is not called any more when the
	// machine has been closed.
	Denied func(Denial)
}

// NetLimits bound what one machine takes of the network. A field that is 0 is the default of who makes the networks.
type NetLimits struct {
	Bandwidth    int64 // bytes a second, each way
	Connections  int   // at once
	NewPerSecond int   // new connections a second
}

// Denial is something that a machine asked of the network and did not get.
type Denial struct {
	Machine string         // the Spec's ID; "" for one that has none yet
	Proto   string         // "tcp", "udp", "icmp", "dns", "ip", …
	Addr    netip.AddrPort // where to; not valid where only the name is known. Port 0: the protocol has none
	Name    string         // of the host, where that is known
	Reason  string         // "private range", "not on the allow list", …
}

// String is a line for a job's log: "denied tcp to 10.0.0.1:5432 (private range)".
func (d Denial) String() string {
	to := d.Name
	switch {
	case !d.Addr.IsValid():
	case d.Addr.Port() == 0 && to == "":
		to = d.Addr.Addr().String()
	case d.Addr.Port() == 0:
		to += " at " + d.Addr.Addr().String()
	case to == "":
		to = d.Addr.String()
	default:
		to += " at " + d.Addr.String()
	}
	return fmt.Sprintf("denied %s to %s (%s)", d.Proto, to, d.Reason)
}

// Networked is a VM that may have a network of its own. It starts with EgressNone: a machine waits for its job, or is
// prepared for it, without a network.
type Networked interface {
	// SetEgress takes effect before it returns. The machine's id in denials becomes id.
	SetEgress(id string, e Egress) error
}
