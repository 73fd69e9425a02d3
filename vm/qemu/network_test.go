package qemu_test

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
	"github.com/terraphim/tgr/vm/network/networktest"
)

// reach is what a guest says of an attempt.
func reach(t *testing.T, c *guest.Client, script string) string {
	t.Helper()
	var out bytes.Buffer
	if _, err := c.Exec(t.Context(), guest.Cmd{Args: []string{"bash", "-c", script}, Env: env()}, &out); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out.String())
}

// TestNetwork goes from inside a guest through its slot to a world of our own: first a machine that was booted, then
// clones of a snapshot with different policies at the same addresses.
func TestNetwork(t *testing.T) {
	cfg := config(t)
	log := &records{}
	cfg.Log = slog.New(slog.NewTextHandler(log, nil))
	w := networktest.New(t, network.Config{Ready: 2})
	w.Name("example.com", networktest.Web)
	w.Name("evil.example.com", "10.0.0.5")
	im, err := built()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Slots, cfg.CacheDir, cfg.Image.Hash = w.Pool, t.TempDir(), im.Hash()
	p := provider(t, cfg)

	denied := make(chan string, 100)
	check := func(id string, e vm.Egress, want map[string]string, denials ...string) {
		t.Helper()
		m, err := p.Start(t.Context(), vm.Spec{ID: id})
		if err != nil {
			t.Fatal(withConsole(err))
		}
		defer m.Close()
		c := connect(t, m)
		e.Denied = func(d vm.Denial) { denied <- d.Machine + ": " + d.String() }
		if err := m.(vm.Networked).SetEgress(id, e); err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for script := range want {
			got[script] = reach(t, c, script)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", id, diff)
		}
		var told []string
		for range denials {
			select {
			case d := <-denied:
				told = append(told, d)
			case <-time.After(30 * time.Second):
				t.Fatalf("%s: only %q was denied within 30 s", id, told)
			}
		}
		slices.Sort(told)
		if diff := cmp.Diff(denials, told); diff != "" {
			t.Errorf("%s: denials (-want +got):\n%s", id, diff)
		}
	}
	const (
		byName  = "curl -sS -m 20 http://example.com/ 2>&1 | head -c 60"
		private = "{ cat </dev/tcp/10.0.0.5/5432; } 2>&1 | grep -o refused | head -1"
		raw     = "{ cat </dev/tcp/203.0.113.80/5432; } 2>&1 | grep -oE 'refused|hello' | head -1"
		rebound = "curl -sS -m 20 http://evil.example.com/ 2>&1 | grep -o 'not resolve'"
	)
	open := map[string]string{byName: "web example.com", private: "refused", raw: "hello", rebound: "not resolve",
		"cat /etc/resolv.conf": "nameserver 198.18.0.1"}
	told := []string{"denied dns to evil.example.com at 10.0.0.5 (private range)", "denied tcp to 10.0.0.5:5432 (private range)"}
	prefix := func(id string) []string { return []string{id + ": " + told[0], id + ": " + told[1]} }
	check("booted", vm.Egress{Mode: vm.EgressOpen}, open, prefix("booted")...)
	if err := p.Warm(t.Context(), vm.Spec{}); err != nil {
		t.Fatal(err)
	}
	check("clone-open", vm.Egress{Mode: vm.EgressOpen}, open, prefix("clone-open")...)
	check("clone-allow", vm.Egress{Mode: vm.EgressAllow, Allow: []string{"example.com"}},
		map[string]string{byName: "web example.com", raw: "refused"}, "clone-allow: denied tcp to 203.0.113.80:5432 (port not on the allow list)")
	check("clone-none", vm.Egress{}, map[string]string{raw: "refused"}, "clone-none: denied tcp to 203.0.113.80:5432 (the job has no network)")
	if n := log.count("machine restored"); n != 3 {
		t.Errorf("%d machines were restored, want 3:\n%s", n, log)
	}
	nothingLeft(t, cfg.Journal)
}

// TestNetworkOfWaiting gives a machine that was restored before anybody wanted it the network of its job.
func TestNetworkOfWaiting(t *testing.T) {
	cfg := config(t)
	w := networktest.New(t, network.Config{Ready: 2})
	w.Name("example.com", networktest.Web)
	cfg.Slots = w.Pool
	ready := make(chan struct{}, 10)
	pool, err := vm.NewPool(vm.PoolConfig{Provider: provider(t, cfg), Size: vm.Spec{Memory: 512 << 20}, Budget: 512 << 20,
		Greet: func(ctx context.Context, m vm.VM) error {
			conn, err := m.Dial(ctx)
			if err != nil {
				return err
			}
			defer conn.Close()
			defer func() { ready <- struct{}{} }()
			return guest.Exercise(ctx, conn, guest.Cmd{Args: []string{"/bin/true"}})
		}})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	select {
	case <-ready:
	case <-time.After(2 * time.Minute):
		t.Fatal("no machine waited within 2 minutes")
	}
	m, err := pool.Start(t.Context(), vm.Spec{ID: "job", Memory: 512 << 20})
	if err != nil {
		t.Fatal(withConsole(err))
	}
	defer m.Close()
	n, ok := m.(vm.Networked)
	if !ok {
		t.Fatalf("%T of a pool has no network", m)
	}
	if err := n.SetEgress("job", vm.Egress{Mode: vm.EgressOpen}); err != nil {
		t.Fatal(err)
	}
	if got := reach(t, connect(t, m), "curl -sS -m 20 http://example.com/ 2>&1"); got != "web example.com" {
		t.Errorf("the job got %q", got)
	}
}
