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
python3 -c 'import socket; socket.socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)' # makes the key
echo fastopen-key $(cat /proc/sys/net/ipv4/tcp_fastopen_key)
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
	for _, kind := range []string{"urandom", "uuid", "boot-id", "machine-id", "mktemp", "key", "hostname", "fastopen-key"} {
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

// sequence tells the first sequence numbers of connections between the same four addresses and ports in every machine,
// without what the clock adds to them. Two connections of one machine have the same, as RFC 6528 wants it.
const sequence = `
import socket, struct, time
REPAIR, QUEUE, SEQ, SEND = 19, 20, 21, 2
def first(port):
    there = socket.create_server(("127.0.0.1", port + 1000), reuse_port=True)
    here = socket.socket()
    here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)) # no TIME_WAIT
    here.bind(("127.0.0.1", port))
    now = time.time_ns()
    here.connect(("127.0.0.1", port + 1000))
    here.setsockopt(socket.IPPROTO_TCP, REPAIR, 1)
    here.setsockopt(socket.IPPROTO_TCP, QUEUE, SEND)
    seq = here.getsockopt(socket.IPPROTO_TCP, SEQ) - 1
    here.setsockopt(socket.IPPROTO_TCP, REPAIR, 0)
    here.close()
    there.close()
    return (seq - (now >> 6)) % (1 << 32)
for again in range(2):
    print(*[first(port) for port in range(30000, 30006)])
`

// TestSequenceNumbers has no clone tell by its own connections how those of another one begin: the key is not the snapshot's.
func TestSequenceNumbers(t *testing.T) {
	cfg, _ := warmConfig(t)
	p := warmed(t, cfg, vm.Spec{})
	// near reports whether numbers are the same but for the time that passed between the look at the clock and the connection.
	near := func(a, b string) bool {
		as, bs := strings.Fields(a), strings.Fields(b)
		n := 0
		for i := range as {
			x, err1 := strconv.ParseUint(as[i], 10, 32)
			y, err2 := strconv.ParseUint(bs[i], 10, 32)
			if err1 != nil || err2 != nil {
				t.Fatalf("%q, %q", a, b)
			}
			const second = 1_000_000_000 >> 6
			if d := int32(uint32(x) - uint32(y)); d > -2*second && d < 2*second {
				n++
			}
		}
		return n > len(as)/2 // by chance one in a hundred is
	}
	seen := map[string]string{}
	for i := range 4 {
		id := fmt.Sprintf("counts-%d", i)
		m, c := start(t, p, id)
		entropy := make([]byte, 64)
		rand.Read(entropy)
		if err := c.Prepare(t.Context(), guest.Identity{Hostname: id, Time: time.Now(), Entropy: entropy}); err != nil {
			t.Fatal(err)
		}
		first, second, _ := strings.Cut(run(t, c, "python3 -c '"+sequence+"'"), "\n")
		if !near(first, second) {
			t.Errorf("%s: the same connections begin with %s and %s: nothing is known of the key", id, first, second)
		}
		for other, numbers := range seen {
			if near(first, numbers) {
				t.Errorf("%s and %s number their connections alike: %s and %s", id, other, first, numbers)
			}
		}
		seen[id] = first
		c.Close()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
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
