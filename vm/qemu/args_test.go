package qemu

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestArgv pins the whole command line: a snapshot can be restored only by the command line it was taken with.
func TestArgv(t *testing.T) {
	im := Image{Kernel: "/img/vmlinux", Initrd: "/img/initramfs", Root: "/img/root, v2.ext4"}
	for name, a := range map[string]args{
		"tcg":    {ID: "job-1", Image: im, Overlay: overlayFile, VCPUs: 1, Memory: 1 << 30, TSC: 2600000, Listen: true},
		"kvm":    {ID: "job-2", Image: im, Overlay: overlayFile, VCPUs: 4, Memory: 1<<30 + 1, Listen: true, KVM: true, Root: true},
		"user":   {ID: "job-3", Image: im, Overlay: overlayFile, VCPUs: 2, Memory: 512 << 20, Listen: true, Network: "user"},
		"golden": {ID: "golden", Image: im, Overlay: overlayFile, VCPUs: 1, Memory: 512 << 20, Listen: true, Root: true, Backing: shared},
		"clone":  {ID: "job-4", Image: im, Overlay: overlayFile, VCPUs: 1, Memory: 512 << 20, Listen: true, Root: true, Backing: private},
		"probe":  {ID: "probe", Image: im, VCPUs: 1, Memory: 256 << 20, Append: []string{"tgr.probe"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := strings.Join(a.argv(), "\n") + "\n"
			golden := filepath.Join("testdata", name+".argv")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestIsolation(t *testing.T) {
	if got := (args{KVM: true}).isolation(); got != "qemu (kvm)" {
		t.Error(got)
	}
	if got := (args{}).isolation(); got != "qemu (tcg)" {
		t.Error(got)
	}
}

func TestTail(t *testing.T) {
	var c tail
	c.Write([]byte("\x1b[31mred\x1b[0m\r\nUTF-8: é, broken: \xff\xfe, nul: \x00.\t\n"))
	if got, want := c.String(), "[31mred[0m\nUTF-8: é, broken: , nul: .\t\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for range 3 {
		c.Write([]byte(strings.Repeat("a", maxConsole/2+7)))
	}
	c.Write([]byte("end"))
	if got := c.String(); len(got) != maxConsole || !strings.HasSuffix(got, "aend") {
		t.Errorf("kept %d bytes that end in %q", len(got), got[len(got)-4:])
	}
	c.Write([]byte(strings.Repeat("b", 3*maxConsole)))
	if got := c.String(); got != strings.Repeat("b", maxConsole) {
		t.Errorf("after a flood: %d bytes", len(got))
	}
	if cap(c.buf) > 4*maxConsole {
		t.Errorf("the buffer grew to %d bytes", cap(c.buf))
	}
}
