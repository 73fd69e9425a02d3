package guest

import (
	"encoding/hex"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestBootOnlyAsPID1(t *testing.T) {
	if _, err := Boot(os.Stderr); err == nil || !strings.Contains(err.Error(), "not PID 1") {
		t.Errorf("got %v, want a refusal", err)
	}
}

func TestParseCmdline(t *testing.T) {
	for cmdline, want := range map[string]bootOptions{
		"":                             {},
		"console=ttyS0 quiet\n":        {},
		"quiet tgr.probe panic=-1":     {probe: true},
		"tgr.net=10.0.2.15/24,a,b x=y": {net: "10.0.2.15/24,a,b"},
		"xtgr.probe tgr.probes":        {},
	} {
		if got := parseCmdline(cmdline); got != want {
			t.Errorf("%q: %+v, want %+v", cmdline, got, want)
		}
	}
}

func TestParseNet(t *testing.T) {
	prefix, gateway, dns, err := parseNet("10.0.2.15/24,10.0.2.2,10.0.2.3")
	if err != nil || prefix.String() != "10.0.2.15/24" || gateway.String() != "10.0.2.2" || dns.String() != "10.0.2.3" {
		t.Errorf("%v %v %v, %v", prefix, gateway, dns, err)
	}
	for _, bad := range []string{"", "10.0.2.15/24", "10.0.2.15,10.0.2.2,10.0.2.3", "10.0.2.15/33,10.0.2.2,10.0.2.3", "fd00::1/64,fd00::2,fd00::3", "10.0.2.15/24,10.0.2.2,10.0.2.3,x"} {
		if _, _, _, err := parseNet(bad); err == nil || !strings.Contains(err.Error(), "tgr.net=") {
			t.Errorf("%q: %v, want an error that names the option", bad, err)
		}
	}
}

// TestRouteMessage pins the bytes of a request that the kernel accepted: `ip route add default via 10.0.2.2`.
func TestRouteMessage(t *testing.T) {
	want := strings.Join([]string{
		"24000000" + "1800" + "0505" + "01000000" + "00000000", // length, RTM_NEWROUTE, flags, sequence, port
		"02000000" + "fe030001" + "00000000",                   // AF_INET, default, main table, boot, universe, unicast
		"0800" + "0500" + "0a000202",                           // RTA_GATEWAY
	}, "")
	if diff := cmp.Diff(want, hex.EncodeToString(routeMessage(netip.MustParseAddr("10.0.2.2")))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// sysfs makes a folder of devices with one attribute each.
func sysfs(t *testing.T, attr string, values map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for device, value := range values {
		if err := os.MkdirAll(filepath.Join(dir, device), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, device, attr), []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFindDisk(t *testing.T) {
	sys := sysfs(t, "serial", map[string]string{"vda": "overlay", "vdb": "root\n", "vdc": ""})
	for serial, want := range map[string]string{"root": "vdb", "overlay": "vda"} {
		if got, err := findDisk(sys, serial, 0); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", serial, got, err, want)
		}
	}
	if _, err := findDisk(sys, "cache", 5*time.Millisecond); err == nil || !strings.Contains(err.Error(), "disk cache did not appear") {
		t.Errorf("got %v", err)
	}
}

func TestFindDisks(t *testing.T) {
	sys := sysfs(t, "serial", map[string]string{"vda": "root", "vdb": "overlay"})
	for names, want := range map[string]string{"": "vda vdb", "vdb,vda": "vdb vda", "vda": "", ",vda": "", "../vda,vdb": ""} {
		root, over, err := findDisks(sys, names)
		if got := strings.TrimSpace(root + " " + over); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", names, got, err, want)
		}
	}
}

func TestParseCmdlineOfFirecracker(t *testing.T) {
	got := parseCmdline("console=ttyS0 tgr.disks=vda,vdb tgr.vsock=52 root=/dev/vda tgr.vsock=x")
	if got.disks != "vda,vdb" || got.vsock != 52 || got.probe || got.net != "" {
		t.Errorf("got %+v", got)
	}
}

func TestOpenPort(t *testing.T) {
	sys := sysfs(t, "name", map[string]string{"vport0p0": "console", "vport0p1": PortName + "\n"})
	dev := t.TempDir()
	if err := os.WriteFile(filepath.Join(dev, "vport0p1"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := openPort(sys, dev, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := openPort(dev, dev, time.Millisecond); err == nil || !strings.Contains(err.Error(), PortName) {
		t.Errorf("got %v, want an error that names the port", err)
	}
}

func TestLoadModulesErrors(t *testing.T) {
	if err := loadModules(t.TempDir(), false); err == nil || !strings.Contains(err.Error(), "order") {
		t.Errorf("without a list: %v", err)
	}
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "order"), []byte("missing.ko\n"), 0o644)
	if err := loadModules(dir, false); err == nil || !strings.Contains(err.Error(), "missing.ko") {
		t.Errorf("without the module: %v", err)
	}
	os.WriteFile(filepath.Join(dir, "order"), []byte("vmw_vsock_virtio_transport.ko\nvirtio_balloon.ko\n"), 0o644)
	if err := loadModules(dir, false); err != nil {
		t.Errorf("modules of Firecracker's devices, which are missing, elsewhere: %v", err)
	}
	if err := loadModules(dir, true); err == nil || !strings.Contains(err.Error(), "vsock") {
		t.Errorf("modules of Firecracker's devices, which are missing: %v", err)
	}
	os.WriteFile(filepath.Join(dir, "order"), []byte("missing.ko\n"), 0o644)
	os.WriteFile(filepath.Join(dir, "missing.ko"), []byte("no module"), 0o644)
	if err := loadModules(dir, false); err == nil || !strings.Contains(err.Error(), "load module missing.ko") {
		t.Errorf("a file that is no module: %v", err)
	}
}
