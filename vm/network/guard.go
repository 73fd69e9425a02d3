package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netns"

	"github.com/terraphim/tgr/vm"
)

const (
	maxDenials  = 50   // different ones that are told of one machine
	maxPins     = 4096 // addresses that a machine was told names for
	maxDials    = 64   // of one machine, at once
	dialTimeout = 10 * time.Second
)

// Why something was denied that the address alone does not explain.
const (
	reasonName   = "not on the allow list"
	reasonNoName = "it names no host"
	reasonNone   = "the job has no network"
	reasonPort   = "port not on the allow list"
	reasonSpoof  = "not the machine's own address"
	reasonLimit  = "too many connections"
	reasonProto  = "protocol not supported"
)

// guard decides by name, for one slot: what the DNS forwarder answers and where the proxy connects to. It tells of
// denials, those of the packet filter too.
type guard struct {
	pool *Pool
	ns   netns.NsHandle
	host []netip.Addr  // the host's addresses
	slow chan struct{} // a token for each connection that is being made

	mu     sync.Mutex
	policy *policy
	id     string
	denied func(vm.Denial)
	told   map[vm.Denial]bool
	pins   map[netip.Addr][]string // what the machine was told that these addresses are
}

func newGuard(p *Pool, ns netns.NsHandle, host []netip.Addr) *guard {
	return &guard{pool: p, ns: ns, host: host, slow: make(chan struct{}, maxDials), policy: &policy{mode: vm.EgressNone}}
}

// set changes the policy, and to whom denials are told.
func (g *guard) set(p *policy, id string, denied func(vm.Denial)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.policy, g.id, g.denied = p, id, denied
	g.told, g.pins = map[vm.Denial]bool{}, map[netip.Addr][]string{}
}

func (g *guard) current() *policy {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.policy
}

// deny tells of a denial: of the same one once, and of so many.
func (g *guard) deny(d vm.Denial) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.denied == nil || len(g.told) > maxDenials || g.told[d] {
		return
	}
	g.told[d] = true
	if len(g.told) > maxDenials {
		d = vm.Denial{Proto: "ip", Name: "more", Reason: fmt.Sprintf("%d different ones were told, and no further one is", maxDenials)}
	}
	d.Machine = g.id
	g.denied(d)
}

// refusal is Refusal for what also is an address of the host.
func (g *guard) refusal(a netip.Addr) string {
	if slices.Contains(g.host, a) {
		return reasonHost
	}
	return Refusal(a)
}

// pin notes that the machine was told that name has this address.
func (g *guard) pin(name string, a netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	names := g.pins[a]
	if slices.Contains(names, name) || len(names) >= 16 {
		return
	}
	if len(g.pins) >= maxPins {
		for old := range g.pins { // any: a machine that asks for so many has what it deserves
			delete(g.pins, old)
			break
		}
	}
	g.pins[a] = append(names, name)
}

// pinned is the name that a connection to an address is for: one that the machine was told has it, and that the policy
// lets through at the port.
func (g *guard) pinned(to netip.AddrPort) (string, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, name := range g.pins[to.Addr()] {
		if g.policy.allows(name, to.Port()) {
			return name, true
		}
	}
	return "", false
}

// deniedError is the error of a connection that the policy does not let through. It was told.
type deniedError struct{ vm.Denial }

// Error is what the machine is told.
func (e *deniedError) Error() string { return "network: " + e.Denial.String() }

func (g *guard) refuse(d vm.Denial) error {
	g.deny(d)
	return &deniedError{d}
}

// dialName connects to a host of the allow list, at one of the addresses that its name has now. Those that no machine
// reaches are left out: a name may not be used to get around the ranges.
func (g *guard) dialName(ctx context.Context, host string, port uint16) (net.Conn, error) {
	name, ok := canonical(host)
	if !ok || !g.current().allows(name, port) {
		return nil, g.refuse(vm.Denial{Proto: "tcp", Name: fmt.Sprintf("%s:%d", printable(host), port), Reason: reasonName})
	}
	ctx, cancel := context.WithTimeoutCause(ctx, dialTimeout, fmt.Errorf("no connection within %v", dialTimeout))
	defer cancel()
	addrs, err := g.pool.dns.lookup(ctx, name)
	if err != nil {
		return nil, err
	}
	err = fmt.Errorf("%s has no IPv4 address", name)
	for _, a := range addrs[:min(len(addrs), 4)] {
		var conn net.Conn
		if conn, err = g.dial(ctx, name, netip.AddrPortFrom(a, port)); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

// dial connects from inside the slot: the packet filter has the last word.
func (g *guard) dial(ctx context.Context, name string, to netip.AddrPort) (conn net.Conn, err error) {
	if why := g.refusal(to.Addr()); why != "" {
		return nil, g.refuse(vm.Denial{Proto: "tcp", Name: name, Addr: to, Reason: why})
	}
	select {
	case g.slow <- struct{}{}:
		defer func() { <-g.slow }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	err = inside(g.ns, func() (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, "tcp4", to.String())
		return err
	})
	return conn, err
}

// printable makes what a machine said safe to show, and short.
func printable(s string) string {
	b := []byte(s[:min(len(s), maxName)])
	for i, c := range b {
		if c <= ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}

// isDenied reports whether err is a denial.
func isDenied(err error) (*deniedError, bool) {
	var d *deniedError
	ok := errors.As(err, &d)
	return d, ok
}
