package network_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
	"github.com/terraphim/tgr/vm/network/networktest"
)

// left is what a world's host has of slots: interfaces, tables, names of namespaces, records.
func left(t *testing.T, w *networktest.World, dir string) []string {
	t.Helper()
	var out []string
	for _, l := range w.Links() {
		if l != "lo" && l != "up0" {
			out = append(out, "interface "+l)
		}
	}
	for _, table := range w.Tables() {
		out = append(out, "table "+table)
	}
	records, err := os.ReadDir(dir)
	must(t, err)
	for _, r := range records {
		out = append(out, "record "+r.Name())
		if _, err := os.Stat(vm.NamespacePath(strings.TrimPrefix(r.Name(), "net-"))); err == nil {
			out = append(out, "namespace "+r.Name())
		}
	}
	return out
}

// namespaces are the named ones that there are.
func namespaces(t *testing.T) map[string]bool {
	t.Helper()
	list, err := filepath.Glob(vm.NamespacePath("tg*"))
	must(t, err)
	names := map[string]bool{}
	for _, n := range list {
		names[filepath.Base(n)] = true
	}
	return names
}

// TestNothingStays makes and frees 50 slots of both kinds, several at once.
func TestNothingStays(t *testing.T) {
	for _, inner := range []bool{false, true} {
		t.Run(fmt.Sprintf("inner %v", inner), func(t *testing.T) {
			w := networktest.New(t, network.Config{Inner: inner, Ready: 2})
			var names []string
			var mu sync.Mutex
			var wg sync.WaitGroup
			for range 5 {
				wg.Go(func() {
					for range 5 {
						s, err := w.Pool.Acquire(context.Background(), "m", open())
						if err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						names = append(names, s.Name())
						mu.Unlock()
						if err := s.Close(); err != nil {
							t.Error(err)
						}
						if err := s.Close(); err != nil {
							t.Errorf("again: %v", err)
						}
					}
				})
			}
			wg.Wait()
			must(t, w.Pool.Close(), w.Pool.Close())
			if got := left(t, w, w.Journal.Dir); len(got) > 0 {
				t.Errorf("left: %q", got)
			}
			if len(names) != 25 {
				t.Errorf("%d slots were made, want 25", len(names))
			}
			there := namespaces(t)
			for _, n := range names {
				if there[n] || there[n+"i"] {
					t.Errorf("namespace %s is left", n)
				}
			}
		})
	}
}

// A slot that is in use when its pool is closed works on, and takes what all share with it.
func TestLastSlot(t *testing.T) {
	w := networktest.New(t, network.Config{Inner: true, Ready: 1})
	m := w.Machine(open())
	must(t, w.Pool.Close())
	must(t, try(m, "udp", networktest.Web+":9999"))
	if _, err := w.Pool.Acquire(context.Background(), "m2", open()); err == nil {
		t.Error("a closed pool gave a slot")
	}
	must(t, m.Close())
	if got := left(t, w, w.Journal.Dir); len(got) > 0 {
		t.Errorf("left: %q", got)
	}
}

// A brief pool makes as many slots as it is asked for, and one that nobody asked for goes with it.
func TestBrief(t *testing.T) {
	for asked := range 3 {
		w := networktest.New(t, network.Config{Inner: true, Ready: 1, Brief: true})
		var names []string
		for i := range asked {
			s, err := w.Pool.Acquire(context.Background(), fmt.Sprint("m", i), open())
			must(t, err)
			names = append(names, s.Name())
			must(t, s.Close())
		}
		must(t, w.Pool.Close())
		last := 0
		for _, n := range names {
			_, number, _ := strings.Cut(n, "-")
			k, err := strconv.Atoi(number)
			must(t, err)
			last = max(last, k)
		}
		if last != asked {
			t.Errorf("%d slots were asked for, and the last of these has the number %d: %q", asked, last, names)
		}
		if got := left(t, w, w.Journal.Dir); len(got) > 0 {
			t.Errorf("left: %q", got)
		}
	}
	w := networktest.New(t, network.Config{Inner: true, Ready: 1, Brief: true})
	must(t, w.Pool.Close())
	if _, err := w.Pool.Acquire(context.Background(), "late", open()); err == nil {
		t.Error("a closed pool gave a slot")
	}
}

// helperEnv tells the test's program to be a server that is going to be killed: the host's namespace and the journal.
const helperEnv = "TGR_NETWORK_TEST_HELPER"

func TestMain(m *testing.M) {
	host, dir, ok := strings.Cut(os.Getenv(helperEnv), ",")
	if !ok {
		os.Exit(m.Run())
	}
	p, err := network.Open(network.Config{Journal: vm.Journal{Dir: dir}, Host: host, Ready: 2, Inner: true})
	for i := 0; err == nil; i++ {
		_, err = p.Acquire(context.Background(), fmt.Sprint("m", i), open())
		if i == 2 {
			fmt.Println("ready")
		}
		if i == 10 {
			select {}
		}
	}
	fmt.Println(err)
	os.Exit(1)
}

// TestKilled kills servers with kill -9, one that works and others at any moment, and has the next one clean up.
func TestKilled(t *testing.T) {
	w := networktest.New(t, network.Config{Ready: 1})
	must(t, w.Pool.Close())
	for i := range 8 {
		dir := filepath.Join(t.TempDir(), "machines")
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), helperEnv+"="+w.Host+","+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		must(t, err, cmd.Start())
		if i == 0 {
			if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
				t.Fatalf("the helper says %q, %v", line, err)
			}
			if got := left(t, w, dir); len(got) < 8 {
				t.Errorf("a server at work has only %q", got)
			}
		} else {
			time.Sleep(rand.N(150 * time.Millisecond)) // any moment will do
		}
		must(t, cmd.Process.Kill())
		cmd.Wait()
		if _, err := os.Stat(dir); err != nil {
			continue // it had not begun
		}
		reaped, err := vm.Journal{Dir: dir}.Reap(context.Background(), nil)
		must(t, err)
		for _, r := range reaped {
			must(t, r.Err)
			for _, n := range r.Network {
				if n.Kind == vm.NetNamespace && namespaces(t)[n.Name] {
					t.Errorf("namespace %s is left", n.Name)
				}
			}
		}
		if got := left(t, w, dir); len(got) > 0 {
			t.Errorf("left after kill %d: %q", i, got)
		}
	}
}

func TestProbe(t *testing.T) {
	networktest.NeedRoot(t)
	must(t, network.Probe())
}
