package network

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr/vm"
)

// Ports on a slot's gateway.
const (
	dnsPort   = 53
	proxyPort = 3129
)

// logGroup is the nfnetlink_log group, of the slot's own namespace, that denials go to.
const logGroup = 1

// Why a packet was denied: the log's prefix. What an address is, the reader of the log finds out from the address.
const (
	logSpoof    = "spoof"
	logAddress  = "address"
	logGateway  = "gateway"
	logProtocol = "protocol"
	logPolicy   = "policy"
	logLimit    = "limit"
)

const tableName = "tgr"

// ruleset is the nftables table of a slot's namespace, as it is being made. Rules are built of parts: a part is the
// expressions of one condition or of what is done.
type ruleset struct {
	conn  *nftables.Conn
	table *nftables.Table
}

// newRuleset begins to change a table. The caller closes it: the kernel then waits until what was removed is not in
// use any more, some ten milliseconds.
func newRuleset(ns netns.NsHandle, table string) (*ruleset, error) {
	opts := []nftables.ConnOption{nftables.AsLasting()}
	if ns.IsOpen() {
		opts = append(opts, nftables.WithNetNSFd(int(ns)))
	}
	c, err := nftables.New(opts...)
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	return &ruleset{conn: c, table: &nftables.Table{Family: nftables.TableFamilyINet, Name: table}}, nil
}

func (r *ruleset) close() { r.conn.CloseLasting() }

type part = []expr.Any

func (r *ruleset) rule(c *nftables.Chain, parts ...part) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: c, Exprs: all})
}

// chain adds a chain that is jumped to.
func (r *ruleset) chain(name string) *nftables.Chain {
	return r.conn.AddChain(&nftables.Chain{Name: name, Table: r.table})
}

// base adds a chain that the kernel calls; what it does not decide on is accepted or dropped.
func (r *ruleset) base(name string, kind nftables.ChainType, hook *nftables.ChainHook, at *nftables.ChainPriority, verdict nftables.ChainPolicy) *nftables.Chain {
	return r.conn.AddChain(&nftables.Chain{Name: name, Table: r.table, Type: kind, Hooknum: hook, Priority: at, Policy: &verdict})
}

// addresses adds a set of IPv4 ranges.
func (r *ruleset) addresses(name string, spans []span) (*nftables.Set, error) {
	set := &nftables.Set{Table: r.table, Name: name, KeyType: nftables.TypeIPAddr, Interval: true}
	var elements []nftables.SetElement
	for _, s := range spans {
		elements = append(elements, nftables.SetElement{Key: s.first.AsSlice()})
		if end := s.last.Next(); end.IsValid() { // none for the range that goes to the end
			elements = append(elements, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return set, r.conn.AddSet(set, elements)
}

func equal(b []byte) *expr.Cmp { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b} }

// name compares an interface's name; one that ends with * only as far as that.
func name(key expr.MetaKey, s string) part {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, s)
	if s[len(s)-1] == '*' {
		b = []byte(s[:len(s)-1])
	}
	return part{&expr.Meta{Key: key, Register: 1}, equal(b)}
}

func in(s string) part  { return name(expr.MetaKeyIIFNAME, s) }
func out(s string) part { return name(expr.MetaKeyOIFNAME, s) }

// not inverts the last comparison of a part.
func not(p part) part {
	switch last := p[len(p)-1].(type) {
	case *expr.Cmp:
		last.Op = expr.CmpOpNeq
	case *expr.Lookup:
		last.Invert = true
	}
	return p
}

func protocol(p byte) part {
	return part{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{p})}
}

func family(f byte) part {
	return part{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal([]byte{f})}
}

// header loads a field of the packet.
func header(base expr.PayloadBase, offset, length uint32) *expr.Payload {
	return &expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: length}
}

func source(a netip.Addr) part {
	return part{header(expr.PayloadBaseNetworkHeader, 12, 4), equal(a.AsSlice())}
}

func destination(a netip.Addr) part {
	return part{header(expr.PayloadBaseNetworkHeader, 16, 4), equal(a.AsSlice())}
}

func destinationIn(s *nftables.Set) part {
	return part{header(expr.PayloadBaseNetworkHeader, 16, 4), &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID}}
}

// sourceWithin matches what comes from an address of the prefix.
func sourceWithin(p netip.Prefix) part {
	mask := net.CIDRMask(p.Bits(), 32)
	return part{
		header(expr.PayloadBaseNetworkHeader, 12, 4),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		equal(p.Masked().Addr().AsSlice()),
	}
}

func port(p uint16) part {
	return part{header(expr.PayloadBaseTransportHeader, 2, 2), equal(binary.BigEndian.AppendUint16(nil, p))}
}

// conntrack matches connections in any of the states.
func conntrack(states uint32) part {
	return part{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(states), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// redirected matches connections whose destination is the namespace's doing: the proxy's clients.
func redirected() part {
	const statusDNAT = 1 << 5 // IPS_DST_NAT
	p := conntrack(statusDNAT)
	p[0] = &expr.Ct{Key: expr.CtKeySTATUS, Register: 1}
	return p
}

func do(kind expr.VerdictKind, chain ...string) part {
	v := &expr.Verdict{Kind: kind}
	if len(chain) > 0 {
		v.Chain = chain[0]
	}
	return part{v}
}

func accept() part           { return do(expr.VerdictAccept) }
func drop() part             { return do(expr.VerdictDrop) }
func then(chain string) part { return do(expr.VerdictGoto, chain) }

// report sends the beginning of the packet to the log, so many a second.
func report(prefix string) part {
	return part{
		&expr.Limit{Type: expr.LimitTypePkts, Rate: 50, Unit: expr.LimitTimeSecond, Burst: 100},
		&expr.Log{Key: 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_SNAPLEN, Group: logGroup, Snaplen: 128, Data: []byte(prefix)},
	}
}

// slotRules is what a slot's rules depend on.
type slotRules struct {
	refused []span
	addr    netip.Addr // of the slot towards the host
	limits  vm.NetLimits
}

// install makes the rules of a slot, with the policy none. They take effect all at once.
func (s slotRules) install(r *ruleset) error {
	r.conn.AddTable(r.table)
	refuse, err := r.addresses("refused", s.refused)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	if err := s.fromMachine(r, refuse); err != nil {
		return err
	}
	s.onward(r, refuse)
	s.translate(r)
	if err := (&policy{mode: vm.EgressNone}).rules(r); err != nil {
		return err
	}
	if err := r.conn.Flush(); err != nil {
		return fmt.Errorf("nftables: install the rules: %w", err)
	}
	return nil
}

// fromMachine looks at every packet that comes from the machine, before anything else of the network does.
func (s slotRules) fromMachine(r *ruleset, refuse *nftables.Set) error {
	mac, err := net.ParseMAC(GuestMAC)
	if err != nil {
		return err
	}
	reject := r.chain("reject")
	r.rule(reject, protocol(unix.IPPROTO_TCP), part{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
	r.rule(reject, part{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}})
	for _, why := range []string{logSpoof, logAddress, logGateway, logProtocol, logPolicy} {
		c := r.chain(why)
		r.rule(c, report(why))
		if why == logSpoof || why == logProtocol {
			r.rule(c, drop()) // there is nobody to answer, or nothing to answer with
			continue
		}
		r.rule(c, then(reject.Name))
	}
	r.chain(policyChain)
	r.chain(redirectChain)

	sane := r.chain("sane")
	c := r.base("machine", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, nftables.ChainPolicyAccept)
	r.rule(c, not(in(tapName)), accept())
	r.rule(c, part{header(expr.PayloadBaseLLHeader, 6, 6), equal(mac)}, then(sane.Name))
	r.rule(c, then(logSpoof))

	c = sane
	// The namespace has no IPv6, so that the kernel drops it before this does; a machine's stack says so much of itself
	// that it is not worth a word.
	r.rule(c, not(family(unix.NFPROTO_IPV4)), drop())
	r.rule(c, not(source(Guest())), then(logSpoof))
	for _, p := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		r.rule(c, destination(Gateway()), protocol(p), port(dnsPort), accept())
	}
	r.rule(c, destination(Gateway()), then(logGateway))
	r.rule(c, destinationIn(refuse), then(logAddress))
	r.rule(c, then(policyChain))

	// New connections are counted where they are known as such: after connection tracking.
	over := r.chain(logLimit)
	r.rule(over, report(logLimit))
	r.rule(over, drop())
	r.base(limitsChain, nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityMangle, nftables.ChainPolicyAccept)
	r.limit(s.limits)
	return nil
}

// limit adds the rules of the chain that bounds the machine's connections.
func (r *ruleset) limit(l vm.NetLimits) {
	c := &nftables.Chain{Name: limitsChain, Table: r.table}
	fresh := func() part { return append(in(tapName), conntrack(expr.CtStateBitNEW)...) }
	r.rule(c, fresh(), part{&expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(l.NewPerSecond), Unit: expr.LimitTimeSecond, Burst: uint32(l.NewPerSecond), Over: true}}, then(logLimit))
	r.rule(c, fresh(), part{&expr.Connlimit{Count: uint32(l.Connections), Flags: expr.NFT_CONNLIMIT_F_INV}}, then(logLimit))
}

// onward is what passes through the namespace, ends in it or begins in it. Besides the proxy's and the forwarder's
// own connections, nothing begins in it: an emulator that was broken out of runs here, and is not root.
func (s slotRules) onward(r *ruleset, refuse *nftables.Set) {
	const known = expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED
	c := r.base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
	r.rule(c, in(tapName), out(uplinkName), accept())
	r.rule(c, in(uplinkName), out(tapName), conntrack(known), accept())

	c = r.base("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
	r.rule(c, in("lo"), accept())
	for _, p := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		r.rule(c, in(tapName), protocol(p), port(dnsPort), accept())
	}
	r.rule(c, in(tapName), protocol(unix.IPPROTO_TCP), port(proxyPort), redirected(), accept())
	r.rule(c, in(uplinkName), conntrack(known), accept())

	c = r.base("output", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
	r.rule(c, out("lo"), accept())
	r.rule(c, out(tapName), accept())
	root := part{&expr.Meta{Key: expr.MetaKeySKUID, Register: 1}, equal(make([]byte, 4))}
	r.rule(c, out(uplinkName), root, family(unix.NFPROTO_IPV4), not(destinationIn(refuse)), accept())
}

// translate gives what leaves the slot the slot's own address, and sends the proxy its clients.
func (s slotRules) translate(r *ruleset) {
	c := r.base("leave", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, nftables.ChainPolicyAccept)
	r.rule(c, out(uplinkName), family(unix.NFPROTO_IPV4), part{
		&expr.Immediate{Register: 1, Data: s.addr.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	})
	c = r.base("arrive", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, nftables.ChainPolicyAccept)
	r.rule(c, in(tapName), not(destination(Gateway())), do(expr.VerdictJump, redirectChain))
}

// The chains whose rules are the policy's, and its limits'.
const (
	limitsChain   = "limits"
	policyChain   = "egress"
	redirectChain = "redirect"
)

// apply replaces the policy of a slot, at once. After an error the ruleset is of no use.
func (p *policy) apply(r *ruleset) error {
	for _, name := range []string{policyChain, redirectChain} {
		r.conn.FlushChain(&nftables.Chain{Name: name, Table: r.table})
	}
	if err := p.rules(r); err != nil {
		return err
	}
	if err := r.conn.Flush(); err != nil {
		return fmt.Errorf("nftables: change the egress policy: %w", err)
	}
	return nil
}

// rules are those of the policy's chains.
func (p *policy) rules(r *ruleset) error {
	c, redirect := &nftables.Chain{Name: policyChain, Table: r.table}, &nftables.Chain{Name: redirectChain, Table: r.table}
	switch p.mode {
	case vm.EgressOpen:
		r.rule(c, protocol(unix.IPPROTO_TCP), accept())
		r.rule(c, protocol(unix.IPPROTO_UDP), accept())
		const echoRequest = 8
		r.rule(c, protocol(unix.IPPROTO_ICMP), part{header(expr.PayloadBaseTransportHeader, 0, 1), equal([]byte{echoRequest})}, accept())
		r.rule(c, then(logProtocol))
	case vm.EgressAllow:
		// Everything that is let through goes to the proxy. UDP, and so QUIC, never is.
		for _, at := range append([]uint16{80, 443}, p.extra...) {
			r.rule(c, protocol(unix.IPPROTO_TCP), port(at), accept())
			r.rule(redirect, protocol(unix.IPPROTO_TCP), port(at), part{
				&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, proxyPort)},
				&expr.Redir{RegisterProtoMin: 1},
			})
		}
		r.rule(c, then(logPolicy))
	default:
		r.rule(c, then(logPolicy))
	}
	return nil
}
