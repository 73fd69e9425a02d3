package runner_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/image"
	"github.com/terraphim/tgr/runner"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/qemu"
)

// TestScenariosVM runs the scenarios in a virtual machine that was restored from a snapshot: they must print there what they
// print on a machine that is a process. They share the machine, each with folders of its own.
func TestScenariosVM(t *testing.T) {
	if testing.Short() {
		t.Skip("restores a virtual machine")
	}
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	m := restoredMachine(t)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txtar")
		t.Run(name, func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if why, _, ok := cutLine(string(a.Comment), "process-only "); ok {
				t.Skip(why)
			}
			s := inVM(t, newScenarioOn(t, a, m), name)
			res, err := runner.Run(s.ctx, s.config, s.job)
			if diff := cmp.Diff(string(find(a, "want")), s.show(res, err)); diff != "" {
				t.Errorf("-process +virtual machine:\n%s", diff)
			}
		})
	}
}

// cutLine finds the line of a comment that begins with a prefix.
func cutLine(comment, prefix string) (rest, all string, ok bool) {
	for line := range strings.Lines(comment) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), prefix); ok {
			return rest, comment, true
		}
	}
	return "", comment, false
}

// inVM gives a scenario places in the machine that are its own.
func inVM(t *testing.T, s *scenario, name string) *scenario {
	t.Helper()
	const node20, node24 = "/opt/node20/bin/node", "/opt/node24/bin/node"
	s.base = "/home/runner/" + name
	s.config.User = "runner"
	s.config.Dirs = runner.Dirs{Home: s.base + "/home", Workspace: s.base + "/work/app/app", Temp: s.base + "/temp",
		Tools: s.base + "/tools", Actions: s.base + "/actions", Commands: scratchOf(t, s.config.Machine)}
	s.config.Nodes = map[string]string{"node20": node20, "node24": node24}
	s.config.Env = map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
	if program, _, ok := cutLine(s.comment, "needs "); ok && program != "node" {
		exit, err := s.config.Machine.Exec(t.Context(), guest.Cmd{Args: []string{"/bin/sh", "-c", "command -v " + program}, Env: []string{"PATH=/usr/bin:/bin"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !exit.Success() {
			t.Skipf("%s is not in the image", program)
		}
	}
	return s
}

// restoredMachine restores a machine of the image that jobs get.
func restoredMachine(t *testing.T) runner.Machine {
	t.Helper()
	im, err := (&image.Store{}).Open(t.Context(), "")
	if errors.Is(err, image.ErrNotBuilt) {
		t.Skip("NOT TESTED in a virtual machine: there is no image; tgr image build makes it")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { im.Close() })
	size := vm.Spec{ID: "scenarios", Memory: 1 << 30}
	p, err := qemu.New(qemu.Config{
		Image:   qemu.Image{Kernel: im.Kernel, Initrd: im.Initrd, Root: im.Root, Overlay: im.CloneOverlay, Hash: im.Hash()},
		Journal: vm.Journal{Dir: t.TempDir()},
		Warmup:  qemu.Warmup{ID: "scenarios", Run: func(context.Context, vm.VM) error { return nil }},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.WithoutCancel(t.Context())
	if err := p.Warm(ctx, size); err != nil {
		t.Fatal(err)
	}
	m, err := p.Start(ctx, size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	c, err := guest.Dial(ctx, m.Dial)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
