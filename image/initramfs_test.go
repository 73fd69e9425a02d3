package image

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// readCPIO is a second opinion on the format: what the kernel would unpack.
func readCPIO(t *testing.T, b []byte) map[string]string {
	t.Helper()
	out := map[string]string{}
	for len(b) > 0 {
		if string(b[:6]) != "070701" {
			t.Fatalf("no magic at %.20q", b)
		}
		field := func(i int) int {
			n, err := strconv.ParseInt(string(b[6+8*i:14+8*i]), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
		mode, size, nameSize := field(1), field(6), field(11)
		name := string(b[110 : 110+nameSize-1])
		data := (110 + nameSize + 3) &^ 3
		if name == "TRAILER!!!" {
			return out
		}
		out[name] = fmt.Sprintf("%o %s", mode, b[data:data+size])
		b = b[(data+size+3)&^3:]
	}
	t.Fatal("no trailer")
	return nil
}

func TestInitramfs(t *testing.T) {
	var b bytes.Buffer
	if err := writeInitramfs(&b, []byte("agent"), []module{{"b.ko", []byte("B")}, {"a.ko", []byte("AAA")}}); err != nil {
		t.Fatal(err)
	}
	if b.Len()%512 != 0 {
		t.Errorf("%d bytes, want a multiple of 512", b.Len())
	}
	want := map[string]string{
		"dev": "40755 ", "proc": "40755 ", "sys": "40755 ", "lib": "40755 ", "lib/modules": "40755 ",
		"lower": "40755 ", "upper": "40755 ", "root": "40755 ", "dev/console": "20600 ", "init": "100755 agent",
		"lib/modules/a.ko": "100644 AAA", "lib/modules/b.ko": "100644 B", "lib/modules/order": "100644 b.ko\na.ko\n",
	}
	if diff := cmp.Diff(want, readCPIO(t, b.Bytes())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	again := bytes.Buffer{}
	writeInitramfs(&again, []byte("agent"), []module{{"b.ko", []byte("B")}, {"a.ko", []byte("AAA")}})
	if !bytes.Equal(again.Bytes(), b.Bytes()) {
		t.Error("the same input gave other bytes")
	}
}

type shortWriter struct{ n int }

func (w *shortWriter) Write(p []byte) (int, error) {
	if w.n -= len(p); w.n < 0 {
		return 0, os.ErrClosed
	}
	return len(p), nil
}

func TestInitramfsWriteError(t *testing.T) {
	if err := writeInitramfs(&shortWriter{600}, []byte("agent"), nil); err == nil {
		t.Error("a failing writer was not noticed")
	}
}

// modulesDir makes a folder as depmod leaves it.
func modulesDir(t *testing.T, dep, builtin string, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("modules.dep", dep)
	write("modules.builtin", builtin)
	for _, f := range files {
		write(f, "\x7fELF"+f)
	}
	return dir
}

func TestReadModules(t *testing.T) {
	dir := modulesDir(t, `kernel/virtio.ko: kernel/ring.ko
kernel/virtio_net.ko: kernel/net-failover.ko kernel/failover.ko kernel/virtio.ko kernel/ring.ko
kernel/net-failover.ko: kernel/failover.ko
kernel/failover.ko:
kernel/ring.ko:
`, "kernel/fs/ext4.ko\n", "kernel/virtio.ko", "kernel/ring.ko", "kernel/virtio_net.ko", "kernel/net-failover.ko", "kernel/failover.ko")
	got, err := readModules(dir, []string{"ext4", "virtio", "virtio_net"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range got {
		names = append(names, m.name)
	}
	if diff := cmp.Diff([]string{"ring.ko", "virtio.ko", "failover.ko", "net-failover.ko", "virtio_net.ko"}, names); diff != "" {
		t.Errorf("load order (-want +got):\n%s", diff)
	}
}

func TestReadModulesErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		dir  string
		want string
	}{
		"unknown":    {modulesDir(t, "", ""), "no module virtio"},
		"missing":    {modulesDir(t, "kernel/virtio.ko:\n", ""), "no such file"},
		"no list":    {t.TempDir(), "modules.dep"},
		"escape":     {modulesDir(t, "kernel/virtio.ko: ../../etc/shadow\n", ""), "leaves its folder"},
		"no colon":   {modulesDir(t, "kernel/virtio.ko\n", ""), "no colon"},
		"compressed": {modulesDir(t, "modules.builtin:\nvirtio.ko:\n", "", "x"), "no such file"},
	} {
		if _, err := readModules(tc.dir, []string{"virtio"}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want an error with %q", name, err, tc.want)
		}
	}
	dir := modulesDir(t, "virtio.ko:\n", "")
	os.WriteFile(filepath.Join(dir, "virtio.ko"), []byte("\xfd7zXZ"), 0o644)
	if _, err := readModules(dir, []string{"virtio"}); err == nil || !strings.Contains(err.Error(), "compressed") {
		t.Errorf("compressed: got %v", err)
	}
}

func TestRealModules(t *testing.T) {
	_, release, err := FindKernel()
	if err != nil {
		if testing.Short() {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	mods, err := readModules(filepath.Join("/lib/modules", release), bootModules())
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]int{}
	for i, m := range mods {
		at[moduleName(m.name)] = i + 1
	}
	for _, pair := range [][2]string{{"virtio_ring", "virtio_mmio"}, {"virtio", "virtio_blk"}, {"failover", "virtio_net"}} {
		if at[pair[0]] == 0 || at[pair[0]] > at[pair[1]] {
			t.Errorf("%s is not loaded before %s: %v", pair[0], pair[1], at)
		}
	}
}

func TestCheckStatic(t *testing.T) {
	if err := checkStatic(tinyELF(t, "GNU\x00", 1)); err != nil {
		t.Error(err)
	}
	if err := checkStatic([]byte("#!/bin/sh")); err == nil {
		t.Error("a script was taken for a program")
	}
	dynamic, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Skip(err)
	}
	if err := checkStatic(dynamic); err == nil || !strings.Contains(err.Error(), "dynamically") {
		t.Errorf("/bin/sh: got %v, want an error about dynamic linking", err)
	}
}

func TestInitramfsKey(t *testing.T) {
	a := initramfsKey([]byte("a"), []module{{"m.ko", []byte("1")}})
	if a != initramfsKey([]byte("a"), []module{{"m.ko", []byte("1")}}) {
		t.Error("the same input gave another key")
	}
	for i, b := range []string{initramfsKey([]byte("b"), []module{{"m.ko", []byte("1")}}), initramfsKey([]byte("a"), []module{{"m.ko", []byte("2")}}), initramfsKey([]byte("a"), nil)} {
		if a == b {
			t.Errorf("other input %d gave the same key", i)
		}
	}
	if _, err := hex.DecodeString(a); err != nil {
		t.Error(err)
	}
}

func FuzzParseDeps(f *testing.F) {
	f.Add("a.ko: b.ko c.ko\nb.ko:\n")
	f.Add("a.ko ../b")
	f.Fuzz(func(t *testing.T, s string) {
		deps, err := parseDeps(s)
		if err != nil {
			return
		}
		for file, ds := range deps {
			for _, d := range append(ds, file) {
				if !filepath.IsLocal(d) {
					t.Errorf("%q leaves its folder", d)
				}
			}
		}
	})
}
