package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/terraphim/tgr/workflow"
)

// newCheckCmd returns `tgr check`, which says all that is wrong with workflow and action files.
func newCheckCmd() *cobra.Command {
	var asJSON, watch bool
	var format string
	cmd := &cobra.Command{
		Use:   "check [--json | --format FORMAT] [--watch] [PATH…]",
		Short: "Say all that is wrong with workflow and action files",
		Long: `Check reads workflow files and action.yml files and says all that is wrong with each, with line, column and an
excerpt. A folder stands for the YAML files below it; a folder with .github/workflows in it for those and for the
action.yml files below it. Without a path it is the folder that you are in. The exit status is 2 if a file has an error.

With --json it prints an array with an element per file:
{"file":…,"ok":…,"errors":[{"line","column","message","rule"}],"warnings":[…],"events":[…],
"jobs":[{"id","needs":[…],"steps":[ids],"uses"}]}.`,
		Example: "  tgr check\n  tgr check --format=sarif .github/workflows/ci.yml",
		RunE: func(cmd *cobra.Command, paths []string) error {
			paths = orHere(paths)
			if asJSON {
				if cmd.Flags().Changed("format") && format != "json" {
					return usagef("--json and --format=%s exclude each other", format)
				}
				format = "json"
			}
			write, ok := checkWriters()[format]
			if !ok {
				return usagef("--format is %q; want text, json, github or sarif", format)
			}
			if watch {
				return checkWatch(cmd.Context(), cmd.OutOrStdout(), paths, write)
			}
			return checkOnce(cmd.OutOrStdout(), paths, write)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "the same as --format=json")
	cmd.Flags().StringVar(&format, "format", "text", "text, json, github (workflow commands) or sarif")
	cmd.Flags().BoolVar(&watch, "watch", false, "check again whenever a file changes, until interrupted")
	return cmd
}

// orHere is the paths that were given, or the folder that the caller is in.
func orHere(paths []string) []string {
	if len(paths) == 0 {
		return []string{"."}
	}
	return paths
}

// checkedFile is the answer about one file.
type checkedFile struct {
	File     string         `json:"file"`
	OK       bool           `json:"ok"`
	Errors   []checkProblem `json:"errors"`
	Warnings []checkProblem `json:"warnings"`
	Events   []string       `json:"events"`
	Jobs     []checkedJob   `json:"jobs"`
}

type checkProblem struct {
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Message string `json:"message"`
	Rule    string `json:"rule"`
	excerpt string
}

type checkedJob struct {
	ID    string   `json:"id"`
	Needs []string `json:"needs"`
	Steps []string `json:"steps"`
	Uses  string   `json:"uses"`
}

// checkOnce checks the files and prints the answers. Its error has exit status 2 if one of them is wrong.
func checkOnce(out io.Writer, paths []string, write func(io.Writer, []checkedFile) error) error {
	files, err := checkFiles(paths)
	if err != nil {
		return err
	}
	answers := make([]checkedFile, 0, len(files))
	failed := false
	for _, f := range files {
		a, err := checkFile(f)
		if err != nil {
			return usageError{err}
		}
		answers = append(answers, a)
		failed = failed || !a.OK
	}
	if err := write(out, answers); err != nil {
		return ours(err)
	}
	if failed {
		return exitError{exitUsage, nil}
	}
	return nil
}

// checkFiles are the files that the paths stand for, each once.
func checkFiles(paths []string) ([]string, error) {
	var out []string
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, usageError{err}
		}
		if !info.IsDir() {
			out = append(out, path)
			continue
		}
		found, err := checkFolder(path)
		if err != nil {
			return nil, usageError{err}
		}
		out = append(out, found...)
	}
	seen := map[string]bool{}
	out = slices.DeleteFunc(out, func(f string) bool {
		f = filepath.Clean(f)
		known := seen[f]
		seen[f] = true
		return known
	})
	if len(out) == 0 {
		return nil, usagef("no workflow files in %s", strings.Join(paths, ", "))
	}
	return out, nil
}

// checkFolder finds the files of a folder, in the order of their names.
func checkFolder(dir string) ([]string, error) {
	_, err := os.Stat(filepath.Join(dir, ".github", "workflows"))
	repository := err == nil
	var out []string
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if d.Name() == ".git" || d.Name() == "node_modules" {
				return filepath.SkipDir
			}
			return nil
		}
		if ext := filepath.Ext(path); ext != ".yml" && ext != ".yaml" {
			return nil
		}
		if !repository || isActionFile(path) || isWorkflowFolder(filepath.Dir(path)) {
			out = append(out, path)
		}
		return nil
	})
	return out, err
}

func isActionFile(path string) bool {
	base := filepath.Base(path)
	return base == "action.yml" || base == "action.yaml"
}

func isWorkflowFolder(dir string) bool {
	dir = filepath.ToSlash(dir)
	return dir == ".github/workflows" || strings.HasSuffix(dir, "/.github/workflows")
}

// checkFile checks one file.
func checkFile(path string) (checkedFile, error) {
	a := checkedFile{File: path, Errors: []checkProblem{}, Warnings: []checkProblem{}, Events: []string{}, Jobs: []checkedJob{}}
	src, err := readWorkflow(path)
	if err != nil {
		return a, err
	}
	if isActionFile(path) && !isWorkflowFolder(filepath.Dir(path)) {
		_, problems := workflow.ParseAction(path, src)
		a.add(problems)
		return a, nil
	}
	w, problems := workflow.Parse(path, src)
	if w != nil {
		a.describe(w)
		if !workflow.Failed(problems) {
			_, more := workflow.Compile(w, workflow.Options{Load: localWorkflows(path), Repo: repoOfFile(path, w)})
			problems = slices.Concat(problems, more, missingWorkflows(w))
		}
	}
	a.add(problems)
	return a, nil
}

// readWorkflow reads a file, and no more of it than is needed to see that it is too large.
func readWorkflow(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 1<<20))
}

// localFile is the file that a job's uses names in the repository of the workflow file at path; "" if it is another
// repository's.
func localFile(path, uses string) string {
	dir := filepath.Dir(path)
	name, local := strings.CutPrefix(uses, "./.github/workflows/")
	if !local {
		name, local = strings.CutPrefix(uses, "$/.github/workflows/")
	}
	if !local || !filepath.IsLocal(name) || !isWorkflowFolder(dir) {
		return ""
	}
	return filepath.Join(dir, name)
}

// repoOfFile is owner/name of the repository that a workflow file is in, where it matters; "" if it is not known.
func repoOfFile(path string, w *workflow.Workflow) string {
	if !slices.ContainsFunc(w.Jobs, func(j workflow.Job) bool { return j.SecretsInherit && localFile(path, j.Uses) == "" }) {
		return ""
	}
	dir := filepath.Dir(path)
	plain, ok := readPlainRepo(dir)
	if !ok {
		// None, or no remote, is no error.
		out, _ := exec.Command("git", "-C", dir, "config", "--get", "remote.origin.url").Output()
		plain.origin = strings.TrimSpace(string(out))
	}
	if plain.origin == "" {
		return ""
	}
	return fullName(plain.origin, dir)
}

// missingWorkflows warns of the reusable workflows of the same repository that are not there: perhaps not yet.
func missingWorkflows(w *workflow.Workflow) []workflow.Problem {
	var out []workflow.Problem
	for _, j := range w.Jobs {
		file := localFile(w.File, j.Uses)
		if file == "" {
			continue
		}
		if _, err := os.Stat(file); err != nil {
			at := j.At["uses"]
			out = append(out, workflow.Problem{File: w.File, Line: at.Line, Column: at.Column, Rule: "uses",
				Severity: workflow.SeverityWarning, Message: fmt.Sprintf("'%s' is not there", j.Uses)})
		}
	}
	return out
}

// localWorkflows loads the reusable workflows of the repository that a workflow file is in. Those of other repositories,
// and files that are not there, are not available.
func localWorkflows(path string) func(string) (workflow.Loaded, error) {
	return func(uses string) (workflow.Loaded, error) {
		file := localFile(path, uses)
		if file == "" {
			return workflow.Loaded{}, nil
		}
		src, err := readWorkflow(file)
		if os.IsNotExist(err) {
			return workflow.Loaded{}, nil
		}
		return workflow.Loaded{File: file, Data: src}, err
	}
}

// add sorts in the problems that are the file's own; those of files it calls are told with these files.
func (a *checkedFile) add(problems []workflow.Problem) {
	for _, p := range problems {
		if p.File != a.File {
			continue
		}
		q := checkProblem{Line: p.Line, Column: p.Column, Message: p.Message, Rule: p.Rule, excerpt: p.Excerpt}
		if p.Severity == workflow.SeverityError {
			a.Errors = append(a.Errors, q)
		} else {
			a.Warnings = append(a.Warnings, q)
		}
	}
	a.OK = len(a.Errors) == 0
}

func (a *checkedFile) describe(w *workflow.Workflow) {
	for _, e := range w.Events {
		a.Events = append(a.Events, e.Name)
	}
	for _, j := range w.Jobs {
		a.Jobs = append(a.Jobs, checkedJob{
			ID: j.Key, Needs: append([]string{}, j.Needs...), Steps: stepIDs([]string{}, j.Steps), Uses: j.Uses,
		})
	}
}

func stepIDs(ids []string, steps []workflow.Step) []string {
	for _, s := range steps {
		ids = stepIDs(append(ids, s.ID), s.Parallel)
	}
	return ids
}

// checkWriters are the formats of `tgr check`.
func checkWriters() map[string]func(io.Writer, []checkedFile) error {
	return map[string]func(io.Writer, []checkedFile) error{
		"text": checkText, "json": checkJSON, "github": checkGitHub, "sarif": checkSARIF,
	}
}

func checkJSON(out io.Writer, files []checkedFile) error { return writeIndented(out, files) }

func writeIndented(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func checkText(out io.Writer, files []checkedFile) error {
	var b bytes.Buffer
	errors, warnings := 0, 0
	for _, f := range files {
		errors, warnings = errors+len(f.Errors), warnings+len(f.Warnings)
		f.each(func(level string, p checkProblem) {
			fmt.Fprintf(&b, "%s:%d:%d: %s: %s [%s]\n", f.File, p.Line, p.Column, level, p.Message, p.Rule)
			if p.excerpt != "" {
				fmt.Fprintf(&b, "    %s\n", strings.ReplaceAll(p.excerpt, "\n", "\n    "))
			}
		})
	}
	fmt.Fprintf(&b, "%s, %s, %s\n", count(len(files), "file"), count(errors, "error"), count(warnings, "warning"))
	_, err := out.Write(b.Bytes())
	return err
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// each calls f with the problems of a file, in their order.
func (a *checkedFile) each(f func(level string, p checkProblem)) {
	type leveled struct {
		level string
		checkProblem
	}
	var all []leveled
	for _, p := range a.Errors {
		all = append(all, leveled{"error", p})
	}
	for _, p := range a.Warnings {
		all = append(all, leveled{"warning", p})
	}
	slices.SortStableFunc(all, func(x, y leveled) int {
		if x.Line != y.Line {
			return x.Line - y.Line
		}
		return x.Column - y.Column
	})
	for _, p := range all {
		f(p.level, p.checkProblem)
	}
}

// checkGitHub prints workflow commands, which a runner turns into annotations.
func checkGitHub(out io.Writer, files []checkedFile) error {
	data := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	property := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
	var b bytes.Buffer
	for _, f := range files {
		f.each(func(level string, p checkProblem) {
			fmt.Fprintf(&b, "::%s file=%s,line=%d,col=%d,title=%s::%s\n",
				level, property.Replace(f.File), max(p.Line, 1), max(p.Column, 1), property.Replace(p.Rule), data.Replace(p.Message))
		})
	}
	_, err := out.Write(b.Bytes())
	return err
}

// checkSARIF prints the Static Analysis Results Interchange Format, version 2.1.0.
func checkSARIF(out io.Writer, files []checkedFile) error {
	type object = map[string]any
	results, rules := []object{}, []object{}
	known := map[string]bool{}
	for _, f := range files {
		f.each(func(level string, p checkProblem) {
			if !known[p.Rule] {
				known[p.Rule] = true
				rules = append(rules, object{"id": p.Rule})
			}
			results = append(results, object{
				"ruleId": p.Rule, "level": level, "message": object{"text": p.Message},
				"locations": []object{{"physicalLocation": object{
					"artifactLocation": object{"uri": filepath.ToSlash(f.File)},
					"region":           object{"startLine": max(p.Line, 1), "startColumn": max(p.Column, 1)},
				}}},
			})
		})
	}
	return writeIndented(out, object{
		"$schema": "https://json.schemastore.org/sarif-2.1.0.json",
		"version": "2.1.0",
		"runs": []object{{
			"tool":       object{"driver": object{"name": "tgr", "informationUri": "https://github.com/terraphim/tgr", "rules": rules}},
			"columnKind": "unicodeCodePoints",
			"results":    results,
		}},
	})
}
