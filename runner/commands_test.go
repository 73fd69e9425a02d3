package runner

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const suites = "../../shared/suites/runner/"

// suite reads a file of cases of GitHub's own runner, or skips the test.
func suite(t *testing.T, name string, into any) {
	t.Helper()
	b, err := os.ReadFile(suites + name)
	if err != nil {
		t.Skipf("the conformance suite is not here: %v", err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatal(err)
	}
}

func TestCommandSuite(t *testing.T) {
	var file struct {
		Cases []struct {
			Syntax, Line, Command, Data string
			Registered                  []string
			Parsed                      bool
			Properties                  map[string]string
		}
	}
	suite(t, "command-parser.json", &file)
	if len(file.Cases) == 0 {
		t.Fatal("no cases")
	}
	for _, c := range file.Cases {
		got, ok := parseCommand(c.Line, func(name string) bool { return slices.Contains(c.Registered, name) })
		if ok != c.Parsed {
			t.Errorf("%q: parsed = %v, want %v", c.Line, ok, c.Parsed)
			continue
		}
		if !ok {
			continue
		}
		if diff := cmp.Diff(command{c.Command, c.Properties, c.Data, c.Line}, got, cmp.AllowUnexported(command{})); diff != "" {
			t.Errorf("%q: -want +got:\n%s", c.Line, diff)
		}
	}
}

func TestParseCommand(t *testing.T) {
	for _, c := range []struct {
		line, name, data string
		props            map[string]string
	}{
		{"::error::x", "error", "x", nil},
		{"\t ::ERROR Title=a,FILE=b::x", "error", "x", map[string]string{"title": "a", "file": "b"}},
		{"::error file=a=b::x", "error", "x", map[string]string{"file": "a=b"}},
		{"::error::a::b", "error", "a::b", nil},
		{"::error", "", "", nil},
		{"::error x", "", "", nil},
		{"::::", "", "", nil},
		{"::nothing::x", "", "", nil},
		{"x::error::y", "", "", nil},
		{"##[error", "", "", nil},
		{"##[error]", "error", "", nil},
		{"x ##[warning a=1;b=2]y", "warning", "y", map[string]string{"a": "1", "b": "2"}},
		{"", "", "", nil},
	} {
		got, ok := parseCommand(c.line, registeredCommand)
		if ok != (c.name != "") {
			t.Errorf("%q: parsed = %v", c.line, ok)
			continue
		}
		if !ok {
			continue
		}
		if c.props == nil {
			c.props = map[string]string{}
		}
		if diff := cmp.Diff(command{c.name, c.props, c.data, c.line}, got, cmp.AllowUnexported(command{})); diff != "" {
			t.Errorf("%q: -want +got:\n%s", c.line, diff)
		}
	}
}

func FuzzParseCommand(f *testing.F) {
	for _, s := range []string{"::error file=a,line=1::x", "##[group]x", "::add-mask::%25%0A", "::::", "##[]", "::debug ::", "::error ,=,::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		c, ok := parseCommand(line, registeredCommand)
		if !ok {
			return
		}
		if !registeredCommand(c.name) || c.raw != line {
			t.Fatalf("%q: %+v", line, c)
		}
		if len(c.data) > len(line) || len(c.props) > maxProps {
			t.Fatalf("%q: grew to %+v", line, c)
		}
		for k, v := range c.props {
			if k == "" || v == "" || k != strings.ToLower(k) {
				t.Fatalf("%q: property %q=%q", line, k, v)
			}
		}
	})
}

func TestAnnotationOf(t *testing.T) {
	for line, want := range map[string]string{
		"::error file=/w/a.go,line=3::m":             `{"level":"error","message":"m","file":"a.go","line":3}`,
		"::error endLine=3::m":                       `{"level":"error","message":"m","line":3,"end_line":3}`,
		"::error line=1,endLine=2,col=4::m":          `{"level":"error","message":"m","line":1,"end_line":2}`,
		"::error line=5,endLine=2::m":                `{"level":"error","message":"m"}`,
		"::error col=5::m":                           `{"level":"error","message":"m"}`,
		"::error line=1,col=5,endColumn=2::m":        `{"level":"error","message":"m","line":1}`,
		"::error line=1,endColumn=2::m":              `{"level":"error","message":"m","line":1,"col":2,"end_column":2}`,
		"::error line=-1::m":                         `{"level":"error","message":"m"}`,
		"::error line=99999999999999999999::m":       `{"level":"error","message":"m"}`,
		"::notice file=./x,title=T::m":               `{"level":"notice","message":"m","title":"T","file":"x"}`,
		"::warning file=/elsewhere/x,line=junk::%0A": `{"level":"warning","message":"\n","file":"/elsewhere/x"}`,
	} {
		c, ok := parseCommand(line, registeredCommand)
		if !ok {
			t.Fatalf("%q is no command", line)
		}
		got, err := json.Marshal(annotationOf(c, "/w"))
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("%q:\n got %s\nwant %s", line, got, want)
		}
	}
}
