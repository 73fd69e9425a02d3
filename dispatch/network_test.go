package dispatch

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/process"
)

// wired is a provider whose machines have a network, which denies something as soon as it is opened.
type wired struct {
	vm.Provider
	fail error

	mu   sync.Mutex
	seen []string // machine, mode and list
}

type wiredVM struct {
	vm.VM
	p *wired
}

func (p *wired) Start(ctx context.Context, s vm.Spec) (vm.VM, error) {
	m, err := p.Provider.Start(ctx, s)
	return &wiredVM{m, p}, err
}

func (m *wiredVM) SetEgress(id string, e vm.Egress) error {
	m.p.mu.Lock()
	defer m.p.mu.Unlock()
	m.p.seen = append(m.p.seen, string(e.Mode))
	m.p.seen = append(m.p.seen, e.Allow...)
	if m.p.fail == nil {
		e.Denied(vm.Denial{Machine: id, Proto: "tcp", Addr: netip.MustParseAddrPort("10.0.0.1:5432"), Reason: "private range"})
	}
	return m.p.fail
}

// TestEgress gives a machine the network of its job's repository, and tells of denials in the job's log.
func TestEgress(t *testing.T) {
	const workflow = "on: push\njobs:\n  a: {runs-on: x, steps: [{run: \"true\"}]}\n"
	egress := func(c *Config) {
		c.Egress = func(run tgr.Run) vm.Egress {
			return vm.Egress{Mode: vm.EgressAllow, Allow: []string{run.Event.Repo.FullName}}
		}
	}
	p := &wired{Provider: process.New(process.Config{Agent: []string{agent}, Dir: t.TempDir()})}
	h := open(t, files{"ci.yml": workflow}, p, egress)
	if runs, _ := h.push(nil); runs[0].Conclusion != tgr.Success {
		t.Errorf("the run: %s", runs[0].Conclusion)
	}
	if want := []string{"allow", "a/b"}; !slices.Equal(p.seen, want) {
		t.Errorf("the machine's egress: %q, want %q", p.seen, want)
	}
	if want := "##[warning]network: denied tcp to 10.0.0.1:5432 (private range)"; !h.log.has(want) {
		t.Errorf("the log has no line %q", want)
	}

	p = &wired{Provider: process.New(process.Config{Agent: []string{agent}, Dir: t.TempDir()}), fail: errors.New("no rules")}
	h = open(t, files{"ci.yml": workflow}, p, egress)
	if runs, jobs := h.push(nil); runs[0].Conclusion != tgr.Failure || jobs[1][1].Blame != tgr.BlameOurs {
		t.Errorf("a machine without its network: %s, blamed on %q", runs[0].Conclusion, jobs[1][1].Blame)
	}
}
