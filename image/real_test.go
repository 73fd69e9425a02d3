package image

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRealImage builds the default image, or finds it in the cache that test runs share, and looks into its root
// filesystem without mounting it. Without mmdebstrap or a kernel it fails: an image is what this package is for.
func TestRealImage(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a root filesystem")
	}
	agent := filepath.Join(t.TempDir(), "tgr-guest")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", agent, "github.com/terraphim/tgr/cmd/tgr-guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	s := &Store{}
	im, err := s.Build(t.Context(), BuildConfig{Agent: agent})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if out, err := exec.Command("/usr/sbin/e2fsck", "-fn", im.Root).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	for path, want := range map[string]string{
		"/home/runner/work":      "User:  1001   Group:  1001",
		"/opt/hostedtoolcache":   "User:  1001   Group:  1001",
		"/etc/sudoers.d/runner":  "Mode:  0440",
		"/usr/bin/sudo":          "Mode:  04755",
		"/tmp":                   "Mode:  01777",
		"/etc/machine-id":        "Size: 0",
		"/opt/node20/bin/node":   "Mode:  0755",
		"/opt/node24/bin/node":   "Mode:  0755",
		"/usr/local/bin/node":    "Type: symlink",
		"/proc":                  "Links: 2",
		"/etc/ssh/ssh_host_keys": "File not found",
	} {
		if got := debugfs(t, im.Root, "stat "+path); !strings.Contains(got, want) {
			t.Errorf("%s: %q is not in\n%s", path, want, got)
		}
	}
	if got := debugfs(t, im.Root, "ls /proc"); strings.Contains(got, "cpuinfo") {
		t.Error("the builder's /proc was copied into the image")
	}
	have := map[string]bool{}
	for _, p := range im.Manifest.Root.Packages {
		have[p.Name] = true
	}
	for _, name := range debianPackages() {
		if !have[name] {
			t.Errorf("%s is not among the %d packages", name, len(have))
		}
	}
}

func debugfs(t *testing.T, image, command string) string {
	t.Helper()
	out, err := exec.Command("/usr/sbin/debugfs", "-R", command, image).CombinedOutput()
	if err != nil {
		t.Fatalf("debugfs: %v\n%s", err, out)
	}
	return string(out)
}
