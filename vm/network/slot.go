package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr/vm"
)

// Slot is the network of one machine. Its methods are safe for concurrent use.
type Slot struct {
	pool  *Pool
	name  string
	rec   *vm.Record
	ns    netns.NsHandle // packets are filtered here
	inner netns.NsHandle // for a container; not open where there is a tap
	tap   *os.File
	rules *ruleset

	mu     sync.Mutex    // of changes of the policy
	mode   vm.EgressMode // that the rules are for
	limits vm.NetLimits  // that are in force

	adopted bool // an earlier server made it

	guard *guard // decides what is let through by name
	serve *service

	closeOnce sync.Once
	closeErr  error
}

// newSlot makes a slot whose policy is none.
func (p *Pool) newSlot() (*Slot, error) {
	p.mu.Lock()
	p.last++
	p.users++
	n := p.last
	p.mu.Unlock()
	name := fmt.Sprintf("%s-%d", p.tag, n) // an interface's name has at most 15 bytes: a hundred million slots
	rec, err := p.cfg.Journal.Open("net-"+name, "network")
	if err != nil {
		return nil, errors.Join(err, p.leave())
	}
	s := &Slot{pool: p, name: name, rec: rec, ns: netns.None(), inner: netns.None(), mode: vm.EgressNone, limits: p.cfg.Limits}
	if err := s.make(); err != nil {
		return nil, errors.Join(fmt.Errorf("slot %s: %w", name, err), s.Close())
	}
	return s, nil
}

// innerName is the name of a container's own namespace.
func (s *Slot) innerName() string { return s.name + "i" }

func (s *Slot) make() error {
	items := []vm.NetItem{{Kind: vm.NetNamespace, Name: s.name}, {Kind: vm.NetLink, Name: s.name, In: s.pool.cfg.Host}}
	if s.pool.cfg.Inner {
		items = append(items, vm.NetItem{Kind: vm.NetNamespace, Name: s.innerName()})
	}
	err := s.rec.AddNetwork(items...)
	if err != nil {
		return err
	}
	if s.ns, err = newNamespace(s.name); err != nil {
		return err
	}
	if s.pool.cfg.Inner {
		if s.inner, err = newNamespace(s.innerName()); err != nil {
			return err
		}
	}
	w := wires{host: s.pool.link, limit: s.limits.Bandwidth}
	if w.slot, err = netlink.NewHandleAt(s.ns, unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer w.slot.Close()
	if s.inner.IsOpen() {
		if w.inner, err = netlink.NewHandleAt(s.inner, unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("netlink: %w", err)
		}
		defer w.inner.Close()
	}
	return s.connect(&w)
}

// connect makes the interfaces of a slot; its rules are there before packets can pass.
func (s *Slot) connect(w *wires) error {
	err := inside(s.ns, func() error {
		return errors.Join(sysctl("ipv6/conf/all/disable_ipv6", "1"), sysctl("ipv6/conf/default/disable_ipv6", "1"),
			sysctl("ipv4/conf/default/rp_filter", "1"), sysctl("ipv4/conf/all/rp_filter", "1"), sysctl("ipv4/ip_forward", "1"))
	})
	if err != nil {
		return fmt.Errorf("settings of the namespace: %w", err)
	}
	host, err := hostAddrs(s.pool.link)
	if err != nil {
		return err
	}
	if s.rules, err = newRuleset(s.ns, tableName); err != nil {
		return err
	}
	unlock, err := lockRange()
	if err != nil {
		return err
	}
	net31, err := s.pool.freeNet()
	if err == nil {
		rules := slotRules{refused: spans4(host), addr: net31.Addr().Next(), limits: s.limits}
		if err = rules.install(s.rules); err == nil {
			err = w.connect(s.ns, s.name, net31)
		}
	}
	unlock()
	if err != nil {
		return err
	}
	if s.inner.IsOpen() {
		err = w.inhabit(s.inner)
	} else {
		err = inside(s.ns, func() (err error) {
			s.tap, err = openTap()
			return err
		})
	}
	if err != nil {
		return err
	}
	if err := w.serve(); err != nil {
		return err
	}
	if s.inner.IsOpen() {
		if err := route(w.inner, guestName, Gateway()); err != nil {
			return err
		}
	}
	s.guard = newGuard(s.pool, s.ns, host)
	s.serve, err = s.guard.serve(s.pool.dns)
	return err
}

// lockRange keeps other processes from choosing addresses at the same time.
func lockRange() (unlock func(), err error) {
	path := filepath.Join("/run", "tgr-network.lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock of the address range: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// freeNet returns two addresses of the range that no interface of the host has. What the host says is the truth, also
// of slots of other processes, or of those that were killed.
func (p *Pool) freeNet() (netip.Prefix, error) {
	used, err := hostAddrs(p.link)
	if err != nil {
		return netip.Prefix{}, err
	}
	taken := map[netip.Addr]bool{}
	for _, a := range used {
		taken[a] = true
	}
	for a := p.cfg.Range.Addr(); p.cfg.Range.Contains(a); a = a.Next().Next() {
		if !taken[a] {
			return netip.PrefixFrom(a, 31), nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("no addresses are left in %s", p.cfg.Range)
}

// Name is the slot's name, which begins the names of all that it has on the host.
func (s *Slot) Name() string { return s.name }

// Namespace is the path of the network namespace that the machine, or its emulator, is to run in.
func (s *Slot) Namespace() string {
	if s.inner.IsOpen() {
		return vm.NamespacePath(s.innerName())
	}
	return vm.NamespacePath(s.name)
}

// ResolvConf is the contents of the machine's /etc/resolv.conf.
func (s *Slot) ResolvConf() string { return "nameserver " + Gateway().String() + "\n" }

// Tap is the tap device, for the emulator to inherit; nil for a container's slot. The slot closes it. It has virtio-net
// headers (IFF_VNET_HDR).
func (s *Slot) Tap() *os.File { return s.tap }

// SetTap gives an adopted slot its tap device, which it closes.
func (s *Slot) SetTap(tap *os.File) { s.tap = tap }

// TapName is the name of a slot's tap device in its namespace.
const TapName = tapName

// HandOver lets go of the tap device, for an emulator that opens it by its name in the namespace, as that user; it goes
// with the slot. Tap is of no use any more.
func (s *Slot) HandOver(uid int) error {
	if s.tap == nil {
		return errors.New("the slot has no tap device")
	}
	if err := unix.IoctlSetInt(int(s.tap.Fd()), unix.TUNSETOWNER, uid); err != nil {
		return fmt.Errorf("give the tap device to user %d: %w", uid, err)
	}
	if err := unix.IoctlSetInt(int(s.tap.Fd()), unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("have the tap device outlive its file: %w", err)
	}
	return s.tap.Close()
}

// Start starts cmd in the machine's namespace.
func (s *Slot) Start(cmd *exec.Cmd) error {
	return s.Inside(cmd.Start)
}

// Inside runs fn on a thread that is in the machine's namespace: sockets that fn makes and processes that it starts
// stay there. Goroutines that it starts do not.
func (s *Slot) Inside(fn func() error) error {
	if s.inner.IsOpen() {
		return inside(s.inner, fn)
	}
	return inside(s.ns, fn)
}

// SetEgress changes what the machine may reach, at once; connections that it has are cut where the new policy does not
// let them be made. id is the machine's, for denials. A machine without a slot, which is nil, has nothing to be changed.
func (s *Slot) SetEgress(id string, e vm.Egress) error {
	if s == nil {
		return nil
	}
	p, err := newPolicy(e)
	if err != nil {
		return err
	}
	limits, err := limitsOf(e.Limits, s.pool.cfg.Limits)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.guard.set(p, id, e.Denied)
	if p.mode == vm.EgressNone && s.mode == vm.EgressNone {
		return nil // of nothing there is nothing to be limited
	}
	err = s.limit(limits)
	if err == nil {
		err = p.apply(s.rules)
	}
	if err != nil {
		s.guard.set(&policy{mode: vm.EgressNone}, id, e.Denied)
		return err
	}
	s.mode = p.mode
	return nil
}

// limit changes how much the machine takes; s.mu is held. The new rules are sent with the next Flush.
func (s *Slot) limit(l vm.NetLimits) error {
	if l.Bandwidth != s.limits.Bandwidth {
		h, err := netlink.NewHandleAt(s.ns, unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("netlink: %w", err)
		}
		defer h.Close()
		for _, name := range []string{uplinkName, tapName} {
			if err := shape(h, name, l.Bandwidth); err != nil {
				return err
			}
		}
	}
	if l != s.limits {
		s.rules.conn.FlushChain(&nftables.Chain{Name: limitsChain, Table: s.rules.table})
		s.rules.limit(l)
	}
	s.limits = l
	return nil
}

// Close ends the slot: nothing is told of the machine any more, and its proxied connections are cut. What the slot has
// on the host goes in the background, because the kernel takes its time; Pool.Close waits for that. The machine itself
// is to be gone. It is idempotent, and a nil slot has nothing to close.
func (s *Slot) Close() error {
	if s == nil {
		return nil
	}
	s.closeOnce.Do(func() {
		if s.serve != nil {
			s.serve.close()
		}
		if !s.pool.later(s.free) {
			s.closeErr = s.free()
		}
	})
	return s.closeErr
}

// Leave lets go of the slot, which stays as it is on the host: for a server that ends, and is followed by one that adopts
// the machine. Nothing else may be called after it. It is idempotent, and a nil slot may be left.
func (s *Slot) Leave() {
	if s == nil {
		return
	}
	s.closeOnce.Do(func() {
		s.serve.close()
		s.let()
		s.pool.mu.Lock()
		s.pool.users--
		s.pool.inherited = true
		s.pool.mu.Unlock()
	})
}

// let closes what this process has of the slot.
func (s *Slot) let() {
	if s.tap != nil {
		s.tap.Close()
	}
	if s.rules != nil {
		s.rules.close()
	}
	for _, ns := range []netns.NsHandle{s.ns, s.inner} {
		if ns.IsOpen() {
			ns.Close()
		}
	}
}

// free removes the slot from the host.
func (s *Slot) free() error {
	s.let()
	err := s.rec.Free(context.Background())
	if s.adopted {
		err = errors.Join(err, s.pool.part(s.tag()))
	}
	return errors.Join(err, s.pool.leave())
}
