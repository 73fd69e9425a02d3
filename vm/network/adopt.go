package network

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netns"

	"github.com/terraphim/tgr/vm"
)

// others is what the slots of a server that has ended share: the host's table. It goes with the last of them.
type others struct {
	rec   *vm.Record
	slots int
}

// Needs are the entries of the journal that have to be kept for the slot to be adopted.
func (s *Slot) Needs() []string { return []string{"net-" + s.name, "net-" + s.tag()} }

// tag names the pool that made the slot.
func (s *Slot) tag() string { return s.name[:strings.LastIndexByte(s.name, '-')] }

// Adopt takes over the slot of this name, of a machine that outlived its server. What the machine may reach stays as it
// is, but for names: DNS and the proxy let nothing through until SetEgress is called. The caller closes the slot.
func (p *Pool) Adopt(name string) (*Slot, error) {
	if i := strings.LastIndexByte(name, '-'); i < 0 || !vm.ValidID("net-"+name) {
		return nil, fmt.Errorf("network: there is no slot %q", name)
	}
	rec, err := p.cfg.Journal.Adopt("net-" + name)
	if err != nil {
		return nil, &vm.InfraError{Op: "network: slot", Err: err}
	}
	s := &Slot{pool: p, name: name, rec: rec, ns: netns.None(), inner: netns.None(), mode: vm.EgressOpen}
	if err := p.join(s.tag()); err != nil {
		return nil, errors.Join(&vm.InfraError{Op: "network: slot", Err: err}, rec.Free(context.Background()))
	}
	s.adopted = true
	if err := s.takeOver(); err != nil {
		return nil, errors.Join(&vm.InfraError{Op: "network: slot", Err: err}, s.Close())
	}
	return s, nil
}

// takeOver opens what the slot has, and serves the machine its names again.
func (s *Slot) takeOver() (err error) {
	if s.ns, err = netns.GetFromPath(vm.NamespacePath(s.name)); err != nil {
		return fmt.Errorf("network namespace %s: %w", s.name, err)
	}
	if s.pool.cfg.Inner {
		if s.inner, err = netns.GetFromPath(vm.NamespacePath(s.innerName())); err != nil {
			return fmt.Errorf("network namespace %s: %w", s.innerName(), err)
		}
	}
	if s.rules, err = newRuleset(s.ns, tableName); err != nil {
		return err
	}
	host, err := hostAddrs(s.pool.link)
	if err != nil {
		return err
	}
	s.guard = newGuard(s.pool, s.ns, host)
	s.serve, err = s.guard.serve(s.pool.dns)
	return err
}

// join keeps what the slots of another pool share for one more of them.
func (p *Pool) join(tag string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := p.others[tag]
	if o == nil {
		rec, err := p.cfg.Journal.Adopt("net-" + tag)
		if err != nil {
			return err
		}
		if p.others == nil {
			p.others = map[string]*others{}
		}
		o = &others{rec: rec}
		p.others[tag] = o
	}
	o.slots++
	p.users++
	return nil
}

// part undoes join. With the last slot goes what they share.
func (p *Pool) part(tag string) error {
	p.mu.Lock()
	o := p.others[tag]
	o.slots--
	last := o.slots == 0
	if last {
		delete(p.others, tag)
	}
	p.mu.Unlock()
	if !last {
		return nil
	}
	return o.rec.Free(context.Background())
}
