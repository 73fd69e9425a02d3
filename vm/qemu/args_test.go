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
		"tcg":         {ID: "job-1", Image: im, Overlay: overlayFile, VCPUs: 1, Memory: 1 << 30, TSC: 2600000, Listen: true},
		"kvm":         {ID: "job-2", Image: im, Overlay: overlayFile, VCPUs: 4, Memory: 1<<30 + 1, Listen: true, KVM: true, Root: true},
		"user":        {ID: "job-3", Image: im, Overlay: overlayFile, VCPUs: 2, Memory: 512 << 20, Listen: true, Network: "user"},
		"golden":      {ID: "golden", Image: im, Overlay: overlayFile, VCPUs: 1, Memory: 512 << 20, Listen: true, Root: true, Backing: shared},
		"clone":       {ID: "job-4", Image: im, Overlay: overlayFile, VCPUs: 1, Memory: 512 << 20, Listen: true, Root: true, Backing: private, Incoming: true},
		"slot":        {ID: "job-5", Image: im, Overlay: overlayFile, VCPUs: 1, Memory: 512 << 20, Listen: true, Root: true, Network: slotNet},
		"slot-golden": {ID: "golden", Image: im, Overlay: overlayFile, VCPUs: 1, Memory: 512 << 20, Listen: true, Root: true, Network: slotNet, Backing: shared},
		"slot-clone":  {ID: "job-6", Image: im, Overlay: overlayFile, VCPUs: 1, Memory: 512 << 20, Listen: true, Root: true, Network: slotNet, Backing: private, Incoming: true},
		"probe":       {ID: "probe", Image: im, VCPUs: 1, Memory: 256 << 20, Append: []string{"tgr.probe"}},
		"back":        {ID: "job-7", Image: im, Overlay: overlayFile, VCPUs: 1, Memory: 512 << 20, Listen: true, Root: true, Backing: shared, Incoming: true, Network: slotNet},
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
