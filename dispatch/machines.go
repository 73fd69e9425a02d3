package dispatch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
)

// Local gives out the machines of a provider on this host, one per job.
type Local struct {
	Provider vm.Provider
	// Place says where things are in a machine of this provider.
	Place func(m vm.VM) Place
	Size  vm.Spec // of every machine; the ID is the job's
	// Shared says that the agent shares its kernel with others, so that there is no clock, hostname or entropy to set.
	Shared bool
	// Host says that machines are in this host's network: their ports are listened on from here, not by way of the agent.
	Host bool
	// Greeter, if not nil, is the one of the pool that Provider is: the machines that it has greeted are used as they are.
	Greeter *Greeter
	Log     *slog.Logger
}

// Acquire starts a machine, greets its agent and gives it an identity of its own, before any user code.
func (p *Local) Acquire(ctx context.Context, s Spec) (*Machine, func(), error) {
	began := time.Now()
	spec := p.Size
	spec.ID = s.ID
	m, err := p.Provider.Start(ctx, spec)
	if err != nil {
		return nil, func() {}, withConsole(err)
	}
	release := func() {
		if err := m.Close(); err != nil {
			p.Log.Error("free a machine", "vm", s.ID, "error", err)
		}
	}
	client, err := p.greet(ctx, m, s.ID)
	if err != nil {
		err = withConsole(diagnose(m, err))
		release()
		return nil, func() {}, err
	}
	out, free := p.give(m, client, s.ID, began)
	return out, free, nil
}

// Adopt takes over a machine that an earlier server has left running. It obeys Adopter.
func (p *Local) Adopt(ctx context.Context, _ Spec, id string) (*Machine, func(), error) {
	began := time.Now()
	m, err := vm.Adopt(ctx, p.Provider, id)
	if err != nil {
		return nil, func() {}, withConsole(err)
	}
	client, err := guest.Dial(ctx, m.Dial)
	if err != nil {
		err = withConsole(diagnose(m, err))
		return nil, func() {}, errors.Join(err, m.Close())
	}
	out, free := p.give(m, client, id, began)
	return out, free, nil
}

// give makes what a job gets of a machine whose agent has answered.
func (p *Local) give(m vm.VM, client *guest.Client, id string, began time.Time) (out *Machine, free func()) {
	free = func() {
		// The machine is killed first: an agent that does not answer must not delay it.
		if err := m.Close(); err != nil {
			p.Log.Error("free a machine", "vm", id, "error", err)
		}
		client.Close()
	}
	out = &Machine{Machine: client, ID: id, Isolation: "unknown", Kernel: client.Hello().Kernel, Boot: time.Since(began)}
	if i, ok := m.(vm.Infoer); ok {
		info := i.Info() // a machine that has waited has an id of its own
		out.ID, out.Isolation = info.ID, info.Isolation
	}
	if s, ok := m.(vm.Survivor); ok {
		out.Leave = func() error { return errors.Join(s.Leave(), client.Close()) }
	}
	if p.Host {
		out.Ports = hostPorts{}
	}
	out.Network, _ = m.(vm.Networked)
	out.Place = p.Place(m)
	out.Dirs.Commands = cmp.Or(out.Dirs.Commands, client.Hello().Scratch)
	return out, free
}

// note is the line about a machine in the log of its job; BootOf reads it.
func (m *Machine) note() string {
	return fmt.Sprintf("Machine %s: %s, kernel %s, ready after %d ms", m.ID, m.Isolation, m.Kernel, m.Boot.Milliseconds())
}

// BootOf is how long the machine took to be ready, if a line of a job's log is the one that says so.
func BootOf(line string) (time.Duration, bool) {
	_, after, ok := strings.Cut(line, ", ready after ")
	digits, found := strings.CutSuffix(after, " ms")
	ms, err := strconv.Atoi(digits)
	return time.Duration(ms) * time.Millisecond, ok && found && err == nil && strings.HasPrefix(line, "Machine ")
}

// greet opens the stream to the agent and seeds the machine: hostname, clock, entropy.
func (p *Local) greet(ctx context.Context, m vm.VM, id string) (*guest.Client, error) {
	if client := p.Greeter.take(m); client != nil {
		err := client.Prepare(ctx, guest.Identity{Hostname: id, Time: time.Now()})
		if err == nil {
			return client, nil
		}
		client.Close()
		p.Log.Warn("a machine that waited does not answer, and is greeted again", "vm", id, "error", err)
	}
	client, err := guest.Dial(ctx, m.Dial)
	if err != nil {
		return nil, err
	}
	if p.Shared {
		return client, nil
	}
	if err := client.Prepare(ctx, guest.Identity{Hostname: id, Time: time.Now(), Entropy: entropy()}); err != nil {
		client.Close()
		return nil, fmt.Errorf("prepare the machine: %w", err)
	}
	return client, nil
}

// diagnose prefers what the machine died of to what was noticed because of it.
func diagnose(m vm.VM, err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if died := m.Wait(ctx); died != nil && !errors.Is(died, context.DeadlineExceeded) {
		return died
	}
	return err
}

// withConsole adds the last words of a machine that did not boot.
func withConsole(err error) error {
	var boot *vm.BootError
	if errors.As(err, &boot) && boot.Console != "" {
		const tail = 2000
		c := boot.Console
		return fmt.Errorf("%w; its console ended with:\n%s", err, c[max(0, len(c)-tail):])
	}
	return err
}
