package runner_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

const compatibilityHead = `# Compatibility

What jobs can count on, with the scenario that shows it: each is a workflow and what it must print, in
` + "`runner/testdata`" + `, and is run by ` + "`go test ./runner -run TestScenarios`" + ` without isolation, and by ` + "`TestScenariosVM`" + ` in a virtual
machine. "no" under tgr is a feature that is refused, with a reason, and never ignored.

The column of act is measured, with version 0.2.89 in host mode, by
` + "`TGR_ACT=~/go/bin/act go test ./runner -run TestAct`" + `: "yes" is for a job that ends as
ours and whose steps print the same, "partly" for one that differs in something that is not the point. What act has no place
for, such as annotations, is "no". The columns of Gitea (1.27 with runner 3.3) and of the official runner say what is
established of them, and were not measured.

This page is made of the scenarios: ` + "`go test ./runner -run TestCompatibility -update`" + `.
`

// TestCompatibility holds docs/compatibility.md to the scenarios.
func TestCompatibility(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	engine, err := filepath.Glob("testdata/engine/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, engine...)
	groups := map[string][]string{}
	var names []string
	for _, file := range files {
		a, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(strings.TrimPrefix(filepath.ToSlash(file), "testdata/"), ".txtar")
		group, row := compatibilityRow(t, name, string(a.Comment))
		if groups[group] == nil {
			names = append(names, group)
		}
		groups[group] = append(groups[group], row)
	}
	if len(files) < 150 {
		t.Errorf("%d scenarios, want 150 or more", len(files))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%d scenarios.\n", compatibilityHead, len(files))
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&b, "\n## %s\n\n| What | tgr | act | Gitea | official | Scenario |\n|---|---|---|---|---|---|\n%s", name, strings.Join(groups[name], ""))
	}
	const doc = "../docs/compatibility.md"
	if *update {
		if err := os.WriteFile(doc, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	have, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(have), b.String()); diff != "" {
		t.Errorf("the page is not what the scenarios say; run with -update: -page +scenarios:\n%s", diff)
	}
}

// compatibilityRow reads what a scenario shows: the sentence that it begins with, its group, and what is known of peers.
func compatibilityRow(t *testing.T, name, comment string) (group, row string) {
	t.Helper()
	first, rest, _ := strings.Cut(comment, "\n")
	sentence, ok := strings.CutPrefix(first, "# ")
	if !ok {
		t.Errorf("%s does not begin with a sentence", name)
	}
	ours, peers := "yes", map[string]string{"act": "not known", "gitea": "not known", "official": "not known"}
	if strings.HasPrefix(name, "engine/") {
		group, sentence = "Containers", sentence+" (in a machine with a container engine)"
	}
	for line := range strings.Lines(rest) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch key {
		case "group":
			group = value
		case "refused":
			ours = "no"
		case "peers":
			for _, p := range strings.Fields(value) {
				who, what, _ := strings.Cut(p, "=")
				if !slices.Contains([]string{"act", "gitea", "official"}, who) || !slices.Contains([]string{"yes", "no", "partly"}, what) {
					t.Errorf("%s: peers %q", name, p)
				}
				peers[who] = what
			}
		}
	}
	if group == "" {
		t.Errorf("%s has no group", name)
	}
	sentence = strings.ReplaceAll(strings.ReplaceAll(strings.TrimSuffix(sentence, "."), ". (", " ("), "|", "\\|")
	return group, fmt.Sprintf("| %s | %s | %s | %s | %s | [%s](../runner/testdata/%s.txtar) |\n",
		sentence, ours, peers["act"], peers["gitea"], peers["official"], name, name)
}
