package firecracker

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/terraphim/tgr/image"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/vmtest"
)

// TestReal runs the conformance suite on a real Firecracker, where there is one; with TGR_FIRECRACKER it has to be.
func TestReal(t *testing.T) {
	absent := t.Skipf
	if os.Getenv("TGR_FIRECRACKER") != "" {
		absent = t.Fatalf
	}
	im, err := (&image.Store{}).Open(t.Context(), "")
	if err != nil {
		absent("NOT TESTED ON A REAL FIRECRACKER: %v", err)
	}
	defer im.Close()
	dir := filepath.Join(t.TempDir(), "journal")
	p, err := New(Config{
		Image:   Image{Kernel: im.Kernel, Initrd: im.Initrd, Root: im.Root, Overlay: im.CloneOverlay, Hash: im.Hash()},
		Journal: vm.Journal{Dir: dir}, CacheDir: t.TempDir(),
	})
	if err != nil {
		absent("NOT TESTED ON A REAL FIRECRACKER: %v", err)
	}
	v, err := p.Probe(t.Context())
	if err != nil || !v.OK {
		absent("NOT TESTED ON A REAL FIRECRACKER: %s, %v", v.Reason, err)
	}
	for _, restored := range []bool{false, true} {
		if restored {
			if err := p.Warm(t.Context(), vm.Spec{}); err != nil {
				t.Fatal(err)
			}
		}
		vmtest.Run(t, vmtest.Factory{Provider: p, Dir: dir, Temp: "/tmp/vmtest", Crash: "kill -9 $PPID", OutputMB: 256, Cycles: 20, Memory: true})
	}
}
