package guest

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestIdentify writes to files of its own: the machine's are tested in a machine.
func TestIdentify(t *testing.T) {
	dir := t.TempDir()
	f := idFiles{dir: dir}
	read := func(entropy byte) (string, string) {
		t.Helper()
		if err := f.identify(bytes.Repeat([]byte{entropy}, 64)); err != nil {
			t.Fatal(err)
		}
		m, err1 := os.ReadFile(f.ourMachineID())
		b, err2 := os.ReadFile(f.ourBootID())
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		return string(m), string(b)
	}
	if err := os.WriteFile(f.ourMachineID(), nil, 0o644); err != nil { // as in the image
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

func TestInTime(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	const slow = time.Second
	for name, tt := range map[string]struct {
		id    Identity
		takes []time.Duration
		want  []Identity
	}{
		"fast":    {Identity{Hostname: "a", Time: at}, []time.Duration{clockLag}, []Identity{{Hostname: "a", Time: at}}},
		"no time": {Identity{Hostname: "a"}, []time.Duration{slow}, []Identity{{Hostname: "a"}}},
		"late": {Identity{Hostname: "a", Time: at}, []time.Duration{slow, slow, 0},
			[]Identity{{Hostname: "a", Time: at}, {Time: at.Add(slow)}, {Time: at.Add(2 * slow)}}},
	} {
		t.Run(name, func(t *testing.T) {
			var told []Identity
			err := inTime(tt.id, func(id Identity) (time.Duration, error) {
				told = append(told, id)
				return tt.takes[len(told)-1], nil
			})
			if diff := cmp.Diff(tt.want, told); diff != "" || err != nil {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
	tries := 0
	if err := inTime(Identity{Time: at}, func(Identity) (time.Duration, error) { tries++; return slow, nil }); err != nil || tries != clockTries {
		t.Errorf("always late: %d tries, %v", tries, err)
	}
	lost := errors.New("lost")
	if err := inTime(Identity{Time: at}, func(Identity) (time.Duration, error) { return slow, lost }); err != lost {
		t.Errorf("got %v", err)
	}
}
