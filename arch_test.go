package tgr_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// rooms is the architecture: each package of this module, and the packages of this module that it may import.
// Everything meets only in dispatch (at run time) and in cmd/tgr (at start-up). "." is the root, the vocabulary.
var rooms = map[string][]string{
	".":                      {},
	"expr":                   {},
	"workflow":               {"expr"},
	"guest":                  {},
	"vm":                     {},
	"vm/process":             {"vm"},
	"vm/network":             {"vm"}, // what is between a machine and the internet is the same for every backend
	"vm/network/networktest": {"vm", "vm/network"},
	"vm/qemu":                {"vm", "vm/network"},
	"vm/firecracker":         {"vm", "vm/network"},
	"vm/container":           {"vm", "vm/network"},
	"vm/vmtest":              {"vm", "guest"},
	"vmapi":                  {"vm", "guest"},
	"vmapi/vmapitest":        {},     // a server with the original's habits, for the tests of two rooms
	"image":                  {"vm"}, // the disks and locks of images are files as those of machines are
	"runner":                 {".", "expr", "workflow", "guest"},
	"dispatch":               {".", "workflow", "runner", "guest", "vm", "image"},
	"store":                  {"."},
	"store/storetest":        {},             // a PostgreSQL server for the tests of two rooms
	"vault":                  {".", "store"}, // alone has the key of the secrets, which the database must not have
	"results":                {"."},          // caches, artifacts and identity tokens: what a job's actions talk to
	"joblog":                 {"."},          // logs are too many and too large for SQL, and have one owner
	"github":                 {"."},
	"github/githubtest":      {"."},
	"llm":                    {"."}, // a model is asked here and believed nowhere
	"learn":                  {"."}, // forgets and learns again: nothing that runs depends on it
	"web":                    {"."},
	"cmd/tgr":                {"*"},
	"cmd/tgr-guest":          {"guest"},
}

func TestRooms(t *testing.T) {
	const module = "github.com/terraphim/tgr"
	files := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == "bin" || d.Name() != "." && strings.HasPrefix(d.Name(), ".")) {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		files++
		room := filepath.ToSlash(filepath.Dir(path))
		may, ok := rooms[room]
		if !ok {
			t.Errorf("%s: package %s has no room; use an existing one, or add it to the table with a reason", path, room)
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if imp == "testing" && !strings.HasSuffix(room, "test") {
				t.Errorf("%s: imports testing outside a test package", path)
			}
			if room == "." && strings.Contains(imp, ".") {
				t.Errorf("%s: the root imports %s, and may import only the standard library", path, imp)
			}
			if imp == module {
				imp = module + "/."
			}
			dep, ours := strings.CutPrefix(imp, module+"/")
			if ours && !slices.Contains(may, dep) && !slices.Contains(may, "*") {
				t.Errorf("%s: %s may not import %s", path, room, dep)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files == 0 {
		t.Fatal("found no Go files: is the test run from the module's root?")
	}
}
