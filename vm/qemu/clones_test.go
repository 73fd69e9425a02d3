package qemu_test

import (
	"bufio"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/qemu"
)

// clones is how many clones are compared: as many as a test may take time for, but TGR_VM_CLONES says otherwise.
func clones() int {
	n, err := strconv.Atoi(os.Getenv("TGR_VM_CLONES"))
	if err != nil || n < 2 {
		return 20
	}
	return n
}

// maxOff is what a clone's clock may be off.
const maxOff = 50 * time.Millisecond

// unique is what no two machines may have in common: a name and a value a line.
const unique = `
echo urandom $(head -c 32 /dev/urandom | base64 -w0)
echo uuid $(cat /proc/sys/kernel/random/uuid)
echo boot-id $(cat /proc/sys/kernel/random/boot_id)
echo machine-id $(cat /etc/machine-id)
echo mktemp $(mktemp -u) 
echo key $(ssh-keygen -q -t ed25519 -N '' -f /tmp/key && cut -d' ' -f2 /tmp/key.pub)
echo hostname $(hostname)
ip neigh | sed 's/^/neighbour /'
`

// TestClonesAreUnlike compares the clones of one snapshot, after they were prepared as for a job.
func TestClonesAreUnlike(t *testing.T) {
	cfg, log := warmConfig(t)
	p := warmed(t, cfg, vm.Spec{})
	var mu sync.Mutex
	seen := map[string]string{} // value → clone
	kinds, booted := map[string]int{}, map[string]bool{}
	var worst time.Duration
	n := clones()
	var work sync.WaitGroup
	turns := make(chan struct{}, 2)
	for i := range n {
		turns <- struct{}{}
		work.Go(func() {
			defer func() { <-turns }()
			id := fmt.Sprintf("unlike-%d", i)
			before, text, off := inspectClone(t, p, id)
			mu.Lock()
			defer mu.Unlock()
			booted[before] = true
			worst = max(worst, off.Abs())
			for line := range strings.Lines(text) {
				line = strings.TrimSpace(line)
				kind, value, ok := strings.Cut(line, " ")
				if other, dup := seen[line]; dup || !ok || value == "" || kind == "neighbour" {
					t.Errorf("%s: %q, which %s had", id, line, other)
				}
				seen[line] = id
				kinds[kind]++
			}
		})
	}
	work.Wait()
	for _, kind := range []string{"urandom", "uuid", "boot-id", "machine-id", "mktemp", "key", "hostname"} {
		if kinds[kind] != n && !t.Failed() {
			t.Errorf("%d clones told their %s, want %d", kinds[kind], kind, n)
		}
	}
	// If clones that were not prepared did not share a boot id, the test would look at machines of another kind.
	if len(booted) != 1 || log.count("machine booted") != 0 {
		t.Errorf("the clones are of %d boots:\n%s", len(booted), log)
	}
	t.Logf("%d clones; clocks at most %v off", n, worst)
	nothingLeft(t, cfg.Journal)
}

// inspectClone restores, prepares and frees a machine. It returns the boot id before, what unique said, and how far
// its clock was off.
func inspectClone(t *testing.T, p *qemu.Provider, id string) (before, text string, off time.Duration) {
	m, err := p.Start(t.Context(), vm.Spec{ID: id})
	if err != nil {
		t.Error(withConsole(err))
		return
	}
	defer m.Close()
	c := tryConnect(t, m)
	if c == nil {
		return
	}
	defer c.Close()
	before = c.Hello().BootID
	entropy := make([]byte, 64)
	rand.Read(entropy)
	if err := c.Prepare(t.Context(), guest.Identity{Hostname: id, Time: time.Now(), Entropy: entropy}); err != nil {
		t.Error(err)
		return
	}
	var out strings.Builder
	exit, err := c.Exec(t.Context(), guest.Cmd{Args: []string{"bash", "-ec", unique}, Env: env()}, &out)
	if err != nil || !exit.Success() {
		t.Errorf("%+v, %v", exit, err)
	}
	off = clockOff(t, c)
	if off > maxOff {
		t.Errorf("%s: the clock is up to %v off", id, off)
	}
	return before, out.String(), off
}

// clockOff is how far a machine's clock may be off. What it says lies between a question and its answer, which bounds it
// from both sides: on a busy host no round trip may be short, but after a few of them each side has been close.
func clockOff(t *testing.T, c *guest.Client) time.Duration {
	ask, stdin := io.Pipe()
	answers, answer := io.Pipe()
	over := make(chan error, 1)
	go func() {
		_, err := c.Exec(t.Context(), guest.Cmd{
			Args: []string{"bash", "-c", "while read; do echo $EPOCHREALTIME; done"}, Env: env(), Stdin: ask,
		}, answer)
		answer.CloseWithError(io.EOF)
		over <- err
	}()
	least, most := -time.Hour, time.Hour // that it is off
	lines := bufio.NewScanner(answers)
	for range 200 {
		begin := time.Now()
		fmt.Fprintln(stdin, "?")
		if !lines.Scan() {
			break
		}
		end := time.Now()
		seconds, micros, _ := strings.Cut(lines.Text(), ".")
		s, err1 := strconv.ParseInt(seconds, 10, 64)
		us, err2 := strconv.ParseInt(micros, 10, 64)
		if err1 != nil || err2 != nil {
			t.Errorf("the machine says that it is %q", lines.Text())
			break
		}
		clock := time.Unix(s, us*1000)
		least, most = max(least, clock.Sub(end)), min(most, clock.Sub(begin))
		if max(least.Abs(), most.Abs()) < maxOff/2 {
			break
		}
	}
	stdin.Close()
	if err := <-over; err != nil {
		t.Error(err)
	}
	return max(least.Abs(), most.Abs())
}

// tryConnect is connect for goroutines that are not the test's.
func tryConnect(t *testing.T, m vm.VM) *guest.Client {
	conn, err := m.Dial(t.Context())
	if err != nil {
		t.Error(err)
		return nil
	}
	c, err := guest.Connect(t.Context(), conn)
	if err != nil {
		t.Error(err)
		return nil
	}
	return c
}

// TestPrepareTwice prepares a machine again, with neighbours that it must forget.
func TestPrepareTwice(t *testing.T) {
	cfg, _ := warmConfig(t)
	m, c := start(t, warmed(t, cfg, vm.Spec{}), "twice")
	last := ""
	for range 2 {
		run(t, c, "ip link add d0 type dummy 2>/dev/null && ip link set d0 up && ip neigh add 10.9.9.9 lladdr 02:00:00:00:00:01 dev d0 nud permanent || true")
		if err := c.Prepare(t.Context(), guest.Identity{Entropy: []byte(rand.Text() + rand.Text())}); err != nil {
			t.Fatal(err)
		}
		got := run(t, c, "cat /proc/sys/kernel/random/boot_id /etc/machine-id; ip neigh | grep -v FAILED || true; grep -c boot_id /proc/mounts")
		lines := strings.Split(got, "\n")
		if len(lines) != 3 || lines[2] != "1" || got == last {
			t.Errorf("prepared: %q, before %q: want a boot id, a machine-id, no neighbours and one mount", got, last)
		}
		last = got
		c.Close()
		c = connect(t, m)
		if c.Hello().BootID != lines[0] {
			t.Errorf("the agent says boot id %s, the machine %s", c.Hello().BootID, lines[0])
		}
	}
}
