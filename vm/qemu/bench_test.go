package qemu_test

import (
	"crypto/rand"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/qemu"
)

// figures are durations in milliseconds, or sizes in MiB, by name.
type figures struct {
	names []string
	all   map[string][]float64
}

func (f *figures) add(name string, v float64) {
	if f.all == nil {
		f.all = map[string][]float64{}
	}
	if f.all[name] == nil {
		f.names = append(f.names, name)
	}
	f.all[name] = append(f.all[name], v)
}

func (f *figures) since(name string, begin time.Time) {
	f.add(name, float64(time.Since(begin))/float64(time.Millisecond))
}

// String is a table.
func (f *figures) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%-44s %4s %8s %8s %8s\n", "", "n", "least", "median", "p99")
	for _, name := range f.names {
		v := slices.Sorted(slices.Values(f.all[name]))
		fmt.Fprintf(&b, "%-44s %4d %8.1f %8.1f %8.1f\n", name, len(v), v[0], v[len(v)/2], v[min(len(v)-1, len(v)*99/100)])
	}
	return b.String()
}

// BenchmarkMachines measures what a job waits for, the ways to a machine beside each other: go test -run '^$'
// -bench Machines -benchtime 50x.
func BenchmarkMachines(b *testing.B) {
	cold, warm := provider(b, config(b)), warmBench(b)
	pool, err := vm.NewPool(vm.PoolConfig{Provider: warm, Size: vm.Spec{}, Budget: 1, Cost: 1, Greet: exercise("true")})
	if err != nil {
		b.Fatal(err)
	}
	defer pool.Close()
	var f figures
	for i := 0; b.Loop(); i++ {
		for pool.Idle() == 0 {
			time.Sleep(5 * time.Millisecond)
		}
		measure(b, &f, "restored", warm)
		measure(b, &f, "pooled", pool)
		if i%5 == 0 {
			measure(b, &f, "booted", cold)
			f.eight(b, warm)
		}
	}
	fmt.Fprintln(os.Stderr, f.String()) // b.Log keeps ten lines
}

func warmBench(b *testing.B) *qemu.Provider {
	cfg, _ := warmConfig(b)
	return warmed(b, cfg, vm.Spec{})
}

// measure starts a machine, prepares it and runs a shell.
func measure(b *testing.B, f *figures, way string, p vm.Provider) {
	begin := time.Now()
	m, err := p.Start(b.Context(), vm.Spec{ID: "bench-" + strings.ToLower(rand.Text())})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	f.since(way+": Start returned, ms", begin)
	c := connect(b, m)
	defer c.Close()
	f.since(way+": agent answered, ms", begin)
	pss := proportional(b, m)
	prepared := time.Now()
	entropy := make([]byte, 64)
	rand.Read(entropy)
	if err := c.Prepare(b.Context(), guest.Identity{Hostname: "bench", Time: time.Now(), Entropy: entropy}); err != nil {
		b.Fatal(err)
	}
	f.since(way+": of that Prepare, ms", prepared)
	for _, name := range []string{": first bash -c true ended, ms", ": a second bash -c true alone, ms"} {
		exit, err := c.Exec(b.Context(), guest.Cmd{Args: []string{"bash", "-c", "true"}, Env: env()}, nil)
		if err != nil || !exit.Success() {
			b.Fatal(exit, err)
		}
		f.since(way+name, begin)
		begin = time.Now()
	}
	f.add(way+": proportional set when idle, MiB", pss)
}

// eight restores eight machines at once.
func (f *figures) eight(b *testing.B, p *qemu.Provider) {
	begin := time.Now()
	var work sync.WaitGroup
	machines := make([]vm.VM, 8)
	for i := range machines {
		work.Go(func() {
			m, err := p.Start(b.Context(), vm.Spec{ID: "bench-" + strings.ToLower(rand.Text())})
			if err != nil {
				b.Error(err)
				return
			}
			machines[i] = m
			conn, err := m.Dial(b.Context())
			if err != nil {
				b.Error(err)
				return
			}
			c, err := guest.Connect(b.Context(), conn)
			if err != nil {
				b.Error(err)
				return
			}
			c.Close()
		})
	}
	work.Wait()
	f.since("eight restored at once: all agents answered, ms", begin)
	for _, m := range machines {
		if m != nil {
			f.add("one of eight: proportional set, MiB", proportional(b, m))
		}
	}
	for _, m := range machines {
		if m != nil {
			m.Close()
		}
	}
}

// proportional is the machine's part of the host's memory in MiB.
func proportional(b *testing.B, m vm.VM) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", m.(vm.Infoer).Info().PID))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var kib float64
		if _, err := fmt.Sscanf(line, "Pss: %f kB", &kib); err == nil {
			return kib / 1024
		}
	}
	b.Fatal("no proportional set")
	return 0
}
