// Package network is what is between a machine and the internet: for each machine a slot, which is a network
// namespace with the machine's side (a tap device, or a pair of interfaces for a container), an uplink to the host,
// packet filter, address translation, a DNS forwarder and a proxy that lets through what a policy allows by name.
//
// All slots look the same from inside, so that a snapshot of a machine fits every one of them. Slots are made ahead
// and used once. Everything is done by netlink; nothing is run.
package network

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr/vm"
)

// DefaultLimits are those of a machine that nothing else is said of: a gigabit a second each way, 4096 connections, and
// 500 new ones a second.
func DefaultLimits() vm.NetLimits {
	return vm.NetLimits{Bandwidth: 125_000_000, Connections: 4096, NewPerSecond: 500}
}

// minBandwidth is the least that a machine can be limited to, in bytes a second.
const minBandwidth = 1000

// limitsOf are the limits of l, and those of def where l says nothing.
func limitsOf(l, def vm.NetLimits) (vm.NetLimits, error) {
	if l.Bandwidth < 0 || l.Connections < 0 || l.NewPerSecond < 0 {
		return l, fmt.Errorf("limits of the network %+v: negative", l)
	}
	return vm.NetLimits{
		Bandwidth:   max(orDefault(l.Bandwidth, def.Bandwidth), minBandwidth),
		Connections: orDefault(l.Connections, def.Connections), NewPerSecond: orDefault(l.NewPerSecond, def.NewPerSecond),
	}, nil
}

// Config says how slots are made. Journal is required; the zero value of the rest is the default.
type Config struct {
	Journal vm.Journal
	Ready   int              // slots that are made ahead; default 4
	Brief   bool             // only the first Ready are: the pool is of a command that soon ends, and frees all it made
	Inner   bool             // slots are for containers: with a namespace that has eth0, and no tap device
	Range   netip.Prefix     // of the addresses between slots and host, two each; default 198.19.0.0/16
	Uplink  string           // the host's interface that machines leave through; default: whichever the host's routes say
	DNS     []netip.AddrPort // resolvers that names are asked of; default: the host's, from /etc/resolv.conf
	Limits  vm.NetLimits     // of a machine whose policy states none; default DefaultLimits
	// Host is the path of the network namespace that slots are connected to, and that names are resolved from;
	// default: this process's own.
	Host string
	Log  *slog.Logger // nil: nothing is logged
}

// Pool makes slots. It is safe for concurrent use.
type Pool struct {
	cfg  Config
	tag  string // names everything of this pool: "tg" and four letters
	host netns.NsHandle
	link *netlink.Handle // in host
	rec  *vm.Record      // of what all slots share
	dns  *upstream

	ready chan *Slot
	owed  int // of a brief pool: slots that are made ahead and nobody has asked for; guarded by mu
	stop  context.CancelCauseFunc
	work  sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	last      int                // number of the slot that was made last
	users     int                // slots that are not closed, and this pool until it is
	inherited bool               // slots were left to another server, with what all share
	faults    []error            // of slots that were freed in the background
	others    map[string]*others // pools of servers that have ended, by tag
}

var errPoolClosed = errors.New("the network was closed")

// Open prepares the host, which is to forward and to masquerade what comes from slots, and begins to make slots. It
// needs root, or the capabilities net_admin and sys_admin, and says so. Close ends it.
func Open(cfg Config) (*Pool, error) {
	cfg, err := cfg.orDefaults()
	if err != nil {
		return nil, err
	}
	if err := mayMakeNamespaces(); err != nil {
		return nil, err
	}
	p := &Pool{cfg: cfg, host: netns.None(), ready: make(chan *Slot, cfg.Ready), tag: "tg" + strings.ToLower(rand.Text()[:4])}
	if cfg.Host != "" {
		if p.host, err = netns.GetFromPath(cfg.Host); err != nil {
			return nil, fmt.Errorf("network: the host's namespace %s: %w", cfg.Host, err)
		}
	}
	p.dns = &upstream{servers: cfg.DNS, host: p.host}
	if err := p.prepareHost(); err != nil {
		return nil, errors.Join(&vm.InfraError{Op: "network", Err: err}, p.release())
	}
	ctx, stop := context.WithCancelCause(context.Background())
	p.stop, p.users = stop, 1
	if cfg.Brief {
		p.owed = cfg.Ready
	}
	p.work.Go(func() { p.fill(ctx) })
	return p, nil
}

func (cfg Config) orDefaults() (Config, error) {
	if cfg.Journal.Dir == "" {
		return cfg, errors.New("network: Config.Journal has no folder")
	}
	if !cfg.Range.IsValid() {
		cfg.Range = netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 19}), 16)
	}
	if !cfg.Range.Addr().Is4() || cfg.Range.Bits() > 30 || cfg.Range != cfg.Range.Masked() || cfg.Range.Contains(Guest()) {
		return cfg, fmt.Errorf("network: range %v: want an IPv4 prefix of at most 30 bits without %v", cfg.Range, Guest())
	}
	if cfg.Ready == 0 {
		cfg.Ready = 4
	}
	if cfg.Ready < 0 {
		return cfg, fmt.Errorf("network: %d slots are to be ready", cfg.Ready)
	}
	var err error
	if cfg.Limits, err = limitsOf(cfg.Limits, DefaultLimits()); err != nil {
		return cfg, fmt.Errorf("network: %w", err)
	}
	if len(cfg.DNS) == 0 {
		b, err := os.ReadFile("/etc/resolv.conf")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return cfg, fmt.Errorf("network: the host's resolvers: %w", err)
		}
		cfg.DNS = parseResolvConf(string(b))
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return cfg, nil
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// mayMakeNamespaces makes one, which is gone when it returns.
func mayMakeNamespaces() error {
	err := onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) })
	if err != nil {
		return &vm.InfraError{Op: "network", Err: fmt.Errorf("this process may not make network namespaces (%w): run it as root, or without a network for machines", err)}
	}
	return nil
}

// prepareHost has the host forward what comes from slots, and nothing else come from them.
func (p *Pool) prepareHost() (err error) {
	if p.host.IsOpen() {
		p.link, err = netlink.NewHandleAt(p.host, unix.NETLINK_ROUTE)
	} else {
		p.link, err = netlink.NewHandle(unix.NETLINK_ROUTE)
	}
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	if p.rec, err = p.cfg.Journal.Open("net-"+p.tag, "network"); err != nil {
		return err
	}
	if err := p.rec.AddNetwork(vm.NetItem{Kind: vm.NetTable, Name: p.tag, In: p.cfg.Host}); err != nil {
		return err
	}
	if err := p.hostRules(); err != nil {
		return err
	}
	// It stays on: others may have come to need it.
	return inside(p.host, func() error { return sysctl("ipv4/ip_forward", "1") })
}

// hostRules makes the host's table: the same few rules for any number of slots.
func (p *Pool) hostRules() error {
	r, err := newRuleset(p.host, p.tag)
	if err != nil {
		return err
	}
	defer r.close()
	r.conn.AddTable(r.table)
	refuse, err := r.addresses("refused", spans4(nil))
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	ours := p.tag + "*"
	// The machine's DNS and proxy are in the slot: the host itself has nothing to say to it, at any address.
	c := r.base("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, nftables.ChainPolicyAccept)
	r.rule(c, in(ours), drop())

	c = r.base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, nftables.ChainPolicyAccept)
	r.rule(c, in(ours), out(ours), drop())
	r.rule(c, in(ours), not(family(unix.NFPROTO_IPV4)), drop())
	r.rule(c, in(ours), destinationIn(refuse), drop())
	r.rule(c, in(ours), not(sourceWithin(p.cfg.Range)), drop())
	if p.cfg.Uplink != "" {
		r.rule(c, in(ours), not(out(p.cfg.Uplink)), drop())
	}
	r.rule(c, out(ours), conntrack(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept())
	r.rule(c, out(ours), drop())

	c = r.base("leave", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, nftables.ChainPolicyAccept)
	r.rule(c, family(unix.NFPROTO_IPV4), sourceWithin(p.cfg.Range), not(out(ours)), part{&expr.Masq{}})
	if err := r.conn.Flush(); err != nil {
		return fmt.Errorf("nftables: install the host's rules: %w", err)
	}
	return nil
}

// fill keeps slots ready until ctx ends, or of a brief pool makes the first.
func (p *Pool) fill(ctx context.Context) {
	for n := 0; ctx.Err() == nil && (!p.cfg.Brief || n < p.cfg.Ready); n++ {
		s, err := p.newSlot()
		if err != nil {
			p.cfg.Log.Error("no network slot could be made ahead", "error", err)
			// The next one is made when somebody asks, who is then told why it could not be.
			select {
			case <-ctx.Done():
				return
			case p.ready <- nil:
			}
			continue
		}
		select {
		case p.ready <- s:
		case <-ctx.Done():
			p.note(s.Close())
		}
	}
}

// Ready is how many slots wait.
func (p *Pool) Ready() int { return len(p.ready) }

// Acquire returns a slot for a machine of this id with its policy in force, one that was made ahead if there is one.
// The caller closes it.
func (p *Pool) Acquire(ctx context.Context, id string, e vm.Egress) (*Slot, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := CheckEgress(e); err != nil {
		return nil, err
	}
	p.mu.Lock()
	closed, owed := p.closed, p.owed > 0
	if owed {
		p.owed--
	}
	p.mu.Unlock()
	if closed {
		return nil, &vm.InfraError{Op: "network", Err: errPoolClosed}
	}
	s, err := p.take(ctx, owed)
	if err != nil {
		return nil, err
	}
	if err := s.SetEgress(id, e); err != nil {
		return nil, errors.Join(&vm.InfraError{Op: "network: slot", Err: err}, s.Close())
	}
	return s, nil
}

// take returns a slot that was made ahead, or is being made and owed to the caller, or else a new one.
func (p *Pool) take(ctx context.Context, owed bool) (*Slot, error) {
	var s *Slot
	open := true
	switch {
	case owed:
		select {
		case s, open = <-p.ready:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	case !p.cfg.Brief: // whose slots are all owed
		select {
		case s, open = <-p.ready:
		default:
		}
	}
	if !open {
		return nil, &vm.InfraError{Op: "network", Err: errPoolClosed}
	}
	if s != nil {
		return s, nil
	}
	s, err := p.newSlot()
	if err != nil {
		return nil, &vm.InfraError{Op: "network: slot", Err: err}
	}
	return s, nil
}

// Close frees the slots that wait. Those that were given out belong to those who have them; with the last of them goes
// what all share. It is idempotent.
func (p *Pool) Close() error {
	p.mu.Lock()
	closed := p.closed
	p.closed = true
	p.mu.Unlock()
	if closed {
		return nil
	}
	p.stop(errPoolClosed)
	var errs []error // of the slots that waited
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.work.Wait()
		close(p.ready)
	}()
	for s := range p.ready {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	<-done
	return errors.Join(append(append(errs, p.faults...), p.leave())...)
}

// later frees a slot in the background, unless the pool is closed.
func (p *Pool) later(free func() error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.work.Go(func() { p.note(free()) })
	return true
}

// note keeps what went wrong with a slot that nobody waits for.
func (p *Pool) note(err error) {
	if err == nil {
		return
	}
	p.cfg.Log.Error("free a network slot", "error", err)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = append(p.faults, err)
}

// leave is called by a slot that is closed, and by Close: the last one frees what all share.
func (p *Pool) leave() error {
	p.mu.Lock()
	p.users--
	last := p.users == 0
	p.mu.Unlock()
	if !last {
		return nil
	}
	return p.release()
}

func (p *Pool) release() error {
	var err error
	if p.rec != nil && !p.inherited {
		err = p.rec.Free(context.Background())
	}
	if p.link != nil {
		p.link.Close()
	}
	if p.host.IsOpen() {
		p.host.Close()
	}
	return err
}
