package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestShortages counts as the kernel would: what was there before the last look is nothing new.
func TestShortages(t *testing.T) {
	dir := t.TempDir()
	vmstat, group := filepath.Join(dir, "vmstat"), filepath.Join(dir, "group")
	if err := os.Mkdir(group, 0o700); err != nil {
		t.Fatal(err)
	}
	g, err := os.Open(group)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	s := shortages{group: &jobGroup{dir: g}}
	for i, tt := range []struct {
		kills, refusals string
		want            Shortage
	}{
		{"0", "0", ""}, {"2", "0", OutOfMemory}, {"2", "0", ""}, {"3", "1", OutOfProcesses}, {"3", "1", ""}, {"3", "9", OutOfProcesses},
		{"4", "9", OutOfMemory}, {"x", "y", ""},
	} {
		for path, text := range map[string]string{
			vmstat:                              "pgfault 7\noom_kill " + tt.kills + "\nnuma 1\n",
			filepath.Join(group, "pids.events"): "max " + tt.refusals + "\n",
		} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := s.look(vmstat, dir); got != tt.want {
			t.Errorf("%d: %s kills and %s refusals: %q, want %q", i, tt.kills, tt.refusals, got, tt.want)
		}
	}
	if got := (&shortages{}).look(vmstat+"-gone", dir); got != "" {
		t.Errorf("%q without a count", got)
	}
}

func TestShortageInWords(t *testing.T) {
	for _, s := range []Shortage{OutOfMemory, OutOfProcesses, OutOfDisk, OutOfFiles} {
		if s.String() == "" || s.Known() != s {
			t.Errorf("%q is %q, known as %q", string(s), s, s.Known())
		}
	}
	for _, s := range []Shortage{"", "patience\n::error::"} {
		if got := fmt.Sprint(s); got != "" || s.Known() != "" {
			t.Errorf("%q is %q, known as %q", string(s), got, s.Known())
		}
	}
}

// TestFull fills disks of its own, which are in memory: one with bytes, one with files.
func TestFull(t *testing.T) {
	if got := full(filepath.Join(t.TempDir(), "none")) + full("/proc"); got != "" {
		t.Errorf("what has no blocks is out of %s", got)
	}
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: a full disk needs root to make one")
	}
	for _, tt := range []struct {
		options string
		fill    func(dir string) error
		want    Shortage
	}{
		{"size=1m", func(dir string) error { return os.WriteFile(filepath.Join(dir, "big"), make([]byte, 1<<20), 0o600) }, OutOfDisk},
		{"size=1m,nr_inodes=20", func(dir string) error {
			for i := 0; ; i++ {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600); err != nil {
					if !errors.Is(err, unix.ENOSPC) {
						return err
					}
					return nil
				}
			}
		}, OutOfFiles},
	} {
		t.Run(string(tt.want), func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, tt.options); err != nil {
				t.Skipf("NOT TESTED: a full disk: %v", err)
			}
			defer unix.Unmount(dir, unix.MNT_DETACH)
			if got := full(dir); got != "" {
				t.Errorf("an empty disk is out of %s", got)
			}
			if err := tt.fill(dir); err != nil {
				t.Fatal(err)
			}
			if got := full(dir); got != tt.want {
				t.Errorf("a full disk is out of %q", got)
			}
		})
	}
}
