package guest

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"regexp"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestIdentify writes to files of its own: the machine's are tested in a machine.
func TestIdentify(t *testing.T) {
	dir := t.TempDir()
	f := idFiles{dir: dir, arp: "/proc/net/arp"}
	c := clone{files: f}
	defer c.close()
	read := func(entropy byte) (string, string) {
		t.Helper()
		if err := c.identify(bytes.Repeat([]byte{entropy}, 64)); err != nil {
			t.Fatal(err)
		}
		m, err1 := os.ReadFile(f.ourMachineID())
		b, err2 := os.ReadFile(f.ourBootID())
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		return string(m), string(b)
	}
	for file, b := range map[string][]byte{f.ourMachineID(): nil, f.ourBootID(): bytes.Repeat([]byte("\n"), 37)} { // as settle leaves them
		if err := os.WriteFile(file, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.open(); err != nil {
		t.Fatal(err)
	}
	m1, b1 := read(1)
	m2, b2 := read(2)
	m3, b3 := read(1)
	if m1 == m2 || b1 == b2 || m1 != m3 || b1 != b3 {
		t.Errorf("ids %q %q, %q %q, %q %q: want them to follow from the entropy", m1, b1, m2, b2, m3, b3)
	}
	if !regexp.MustCompile(`^[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}\n$`).MatchString(m1) {
		t.Errorf("machine-id %q", m1)
	}
	if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\n$`).MatchString(b1) {
		t.Errorf("boot id %q", b1)
	}
}

func TestParseARP(t *testing.T) {
	got := parseARP([]byte(`IP address       HW type     Flags       HW address            Mask     Device
10.0.2.2         0x1         0x2         52:55:0a:00:02:02     *        eth0
10.0.2.3         0x1         0x0         00:00:00:00:00:00     *        eth0
nonsense
`))
	want := []neighbour{{netip.MustParseAddr("10.0.2.2"), "eth0"}, {netip.MustParseAddr("10.0.2.3"), "eth0"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(neighbour{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// machineClock is a machine far away: how long each question and its answer take, and how its clock ends up.
type machineClock struct {
	ways []time.Duration // to the machine, back, to the machine, …; the last two over and over
	told []Identity
	off  time.Duration // from the host's clock
}

func (m *machineClock) tell(id Identity) (time.Time, error) {
	way := func() {
		time.Sleep(m.ways[0])
		if len(m.ways) > 2 {
			m.ways = m.ways[1:]
		} else {
			m.ways[0], m.ways[1] = m.ways[1], m.ways[0]
		}
	}
	way()
	m.told = append(m.told, id)
	if !id.Time.IsZero() {
		m.off = time.Until(id.Time)
	}
	m.off += id.Shift
	clock := time.Now().Add(m.off)
	way()
	return clock, nil
}

func TestInTime(t *testing.T) {
	const ms = time.Millisecond
	for name, tt := range map[string]struct {
		ways  []time.Duration
		off   time.Duration // at most, in the end
		tells int           // at most
	}{
		"fast":                 {[]time.Duration{9 * ms, 9 * ms}, 9 * ms, 1},
		"late once":            {[]time.Duration{500 * ms, 1 * ms, 1 * ms, 1 * ms}, clockLag / 2, 3},
		"one way is slow":      {[]time.Duration{70 * ms, 2 * ms}, 36 * ms, clockTries + 2},
		"each way is fast":     {[]time.Duration{90 * ms, 40 * ms, 80 * ms, 1 * ms, 3 * ms, 90 * ms, 60 * ms, 60 * ms}, clockLag / 2, 4},
		"always and both late": {[]time.Duration{80 * ms, 80 * ms}, 1 * ms, clockTries + 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &machineClock{ways: tt.ways}
				if err := inTime(Identity{Hostname: "a", Time: time.Now()}, m.tell); err != nil {
					t.Fatal(err)
				}
				if m.off.Abs() > tt.off || len(m.told) > tt.tells || m.told[0].Hostname != "a" {
					t.Errorf("the clock is %v off after %d times, want %v after %d: %+v", m.off, len(m.told), tt.off, tt.tells, m.told)
				}
			})
		})
	}
	m := &machineClock{ways: []time.Duration{0, 0}}
	if err := inTime(Identity{Hostname: "a"}, m.tell); err != nil || !cmp.Equal(m.told, []Identity{{Hostname: "a"}}) {
		t.Errorf("no time to be told: %+v, %v", m.told, err)
	}
	lost := errors.New("lost")
	if err := inTime(Identity{Time: time.Now()}, func(Identity) (time.Time, error) { return time.Time{}, lost }); err != lost {
		t.Errorf("got %v", err)
	}
}
