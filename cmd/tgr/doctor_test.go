package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/terraphim/tgr/image"
	"github.com/terraphim/tgr/vm/qemu"
)

func TestDoctorTool(t *testing.T) {
	dir := t.TempDir()
	program := func(name, script string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program("good", "echo good 1.2; echo more")
	program("bad", "exit 3")
	t.Setenv("PATH", dir)
	for _, tc := range []struct {
		tool tool
		want finding
	}{
		{tool{"good", "-V", "good-pkg", true, "does good"}, finding{Name: "good", OK: true, Required: true, Found: "good 1.2"}},
		{tool{"bad", "-V", "bad-pkg", false, "does bad"}, finding{Name: "bad", Found: dir + "/bad -V: exit status 3", Fix: aptInstall("bad-pkg")}},
		{tool{"none", "-V", "none-pkg", true, "does nothing"}, finding{Name: "none", Required: true, Found: "not found; it does nothing", Fix: aptInstall("none-pkg")}},
	} {
		if got := tc.tool.check(t.Context()); got != tc.want {
			t.Errorf("got  %+v\nwant %+v", got, tc.want)
		}
	}
}

func TestDoctorDisk(t *testing.T) {
	f := checkDisk(filepath.Join(t.TempDir(), "not", "there", "yet"))
	if !strings.Contains(f.Found, "MiB free below") {
		t.Errorf("%+v: a folder that does not exist yet was not understood", f)
	}
	if f := checkMemory(); !strings.HasSuffix(f.Found, "available") {
		t.Errorf("%+v", f)
	}
}

func TestDoctorKVM(t *testing.T) {
	if f := kvmFinding(qemu.Verdict{KVM: true, Reason: "a guest booted"}); !f.OK || f.Fix != "" {
		t.Errorf("%+v", f)
	}
	if f := kvmFinding(qemu.Verdict{Reason: "no"}); f.OK || f.Required || f.Fix == "" {
		t.Errorf("%+v: KVM is missing, which is not fatal and can be mended", f)
	}
}

func TestDoctorPrint(t *testing.T) {
	d := diagnosis{Findings: []finding{
		{Name: "git", OK: true, Required: true, Found: "git 2"},
		{Name: "image", Required: true, Found: "none", Fix: "tgr image build"},
		{Name: "KVM", Found: "no", Fix: "buy a host"},
	}, Why: "there is no image to boot"}
	var b bytes.Buffer
	if err := d.print(&b); err != nil {
		t.Fatal(err)
	}
	want := "✓ git                 git 2\n" +
		"✗ image               none\n" + "                      → tgr image build\n" +
		"– KVM                 no\n" + "                      → buy a host\n" +
		"\nNot yet: there is no image to boot.\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

// TestDoctorBoots asks the doctor on a host that has what it needs: it boots a guest.
func TestDoctorBoots(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a virtual machine")
	}
	s := &image.Store{}
	im, err := s.Build(t.Context(), image.BuildConfig{Agent: buildAgent(t)})
	if err != nil {
		t.Fatal(err)
	}
	im.Close()
	var d diagnosis
	d.checkMachines(t.Context(), s, image.DefaultName)
	if !strings.HasPrefix(d.Isolation, "qemu (") || d.Why == "" {
		t.Errorf("%+v: no isolation works", d)
	}
}

func TestProgress(t *testing.T) {
	var b bytes.Buffer
	p := newProgress(&b)
	p.start = time.Now().Add(-5 * time.Second)
	for _, step := range []string{"fetch", "fetch", "build \x1b[2J"} {
		p.step(step, 1, 2)
	}
	p.end()
	if got := b.String(); strings.Count(got, "\n") != 2 || strings.Contains(got, "\x1b") || !strings.HasPrefix(got, "   5.0s fetch\n") {
		t.Errorf("got %q", got)
	}
	b.Reset()
	p.tty = true
	p.step("fetch", 1, 4)
	p.end()
	if got := b.String(); !strings.Contains(got, "fetch (25 %)") || !strings.HasSuffix(got, "\r\x1b[K") {
		t.Errorf("got %q", got)
	}
}
