package web

import (
	"encoding/json"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/terraphim/tgr"
)

// document is as much of the OpenAPI document as the tests look at.
type document struct {
	Paths      map[string]map[string]operation `json:"paths"`
	Components struct {
		Schemas map[string]schema `json:"schemas"`
	} `json:"components"`
}

type operation struct {
	OperationID string `json:"operationId"`
	Summary     string `json:"summary"`
	Parameters  []struct {
		Name, In string
	} `json:"parameters"`
	Responses map[string]any `json:"responses"`
}

type schema struct {
	Ref        string            `json:"$ref"`
	Type       string            `json:"type"`
	Items      *schema           `json:"items"`
	Required   []string          `json:"required"`
	Properties map[string]schema `json:"properties"`
	Enum       []string          `json:"enum"`
}

func readDocument(t *testing.T) document {
	t.Helper()
	var d document
	if err := json.Unmarshal(openapiJSON, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestOpenAPIRoutes holds the document and the routes together: paths, methods and parameters, both ways.
func TestOpenAPIRoutes(t *testing.T) {
	d := readDocument(t)
	got, want := map[string][]string{}, map[string][]string{}
	ids := map[string]bool{}
	for path, methods := range d.Paths {
		for method, op := range methods {
			params := []string{}
			for _, p := range op.Parameters {
				if p.In != "header" {
					params = append(params, p.Name)
				}
			}
			slices.Sort(params)
			got[strings.ToUpper(method)+" "+path] = params
			if op.Summary == "" || op.OperationID == "" || ids[op.OperationID] {
				t.Errorf("%s %s needs a summary and an operationId of its own", method, path)
			}
			ids[op.OperationID] = true
		}
	}
	variable := regexp.MustCompile(`\{(\w+)\}`)
	for _, rt := range routes() {
		if rt.kind == page || rt.path == "/static/{file}" {
			continue
		}
		params := slices.Clone(rt.query)
		for _, m := range variable.FindAllStringSubmatch(rt.path, -1) {
			params = append(params, m[1])
		}
		slices.Sort(params)
		want[rt.method+" "+rt.path] = append([]string{}, params...)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("routes (-) and document (+) differ:\n%s", diff)
	}
}

// TestOpenAPIFields holds the document and the Go types together: every field with its type, both ways.
func TestOpenAPIFields(t *testing.T) {
	d := readDocument(t)
	types := map[string]reflect.Type{}
	for _, v := range []any{tgr.Repo{}, tgr.Event{}, tgr.Run{}, tgr.Job{}, tgr.Step{}, tgr.Annotation{}, tgr.Group{}, tgr.Approval{}, tgr.Setting{}, tgr.Environment{}, SettingRequest{}, SettingList{}, EnvironmentName{}, EnvironmentList{}, Done{}, ApproveRequest{}, RunList{}, RunDetail{}, LogLine{}, Span{},
		StreamEnd{}, StepState{}, ArtifactList{}, tgr.Artifact{}, CancelRequest{}, Rerun{}, Dispatch{}, Scheduled{}, ScheduleList{}, Accepted{}, Health{}, ErrorBody{}, ErrorDetail{},
		Ask{}, tgr.Notes{}, tgr.Provenance{}, tgr.Difference{}, tgr.Explanation{}, tgr.CitedLine{}, tgr.Claim{}, tgr.Replacement{},
		tgr.Insights{}, tgr.Timing{}, tgr.Flake{}, tgr.Cluster{}, tgr.Lesson{}, tgr.Risk{}, tgr.Link{}, tgr.Command{}, tgr.Suggestion{}} {
		types[reflect.TypeOf(v).Name()] = reflect.TypeOf(v)
	}
	for name, typ := range types {
		s, ok := d.Components.Schemas[name]
		if !ok {
			t.Errorf("the document has no schema %s", name)
			continue
		}
		fields := jsonFields(typ)
		got := slices.Sorted(maps.Keys(s.Properties))
		if diff := cmp.Diff(slices.Sorted(maps.Keys(fields)), got); diff != "" {
			t.Errorf("%s: fields (-) and document (+) differ:\n%s", name, diff)
		}
		for field, f := range fields {
			if want, got := kindOf(f.Type), s.Properties[field]; want != got.Type && want != strings.TrimPrefix(got.Ref, "#/components/schemas/") {
				t.Errorf("%s.%s is %s; the document says %q%q", name, field, want, got.Type, got.Ref)
			}
			answer := !slices.Contains([]string{"CancelRequest", "Rerun", "Dispatch", "Ask"}, name)
			optional := strings.Contains(f.Tag.Get("json"), ",omit")
			if answer && optional == slices.Contains(s.Required, field) {
				t.Errorf("%s.%s: omitted when empty is %t, and required is too", name, field, optional)
			}
		}
	}
	for name := range d.Components.Schemas {
		if _, ok := types[name]; !ok && name != "Status" && name != "Conclusion" {
			t.Errorf("the document has a schema %s, and the API no such type", name)
		}
	}
	if got := d.Components.Schemas["Conclusion"].Enum; !slices.Equal(got, conclusions) {
		t.Errorf("conclusions in the document: %v", got)
	}
	var codes []string
	for code := range statuses {
		codes = append(codes, string(code))
	}
	if diff := cmp.Diff(slices.Sorted(slices.Values(codes)), slices.Sorted(slices.Values(d.Components.Schemas["ErrorDetail"].Properties["code"].Enum))); diff != "" {
		t.Errorf("codes (-) and document (+) differ:\n%s", diff)
	}
}

// jsonFields are the fields of a struct by their JSON names, those of embedded structs included.
func jsonFields(typ reflect.Type) map[string]reflect.StructField {
	fields := map[string]reflect.StructField{}
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			maps.Copy(fields, jsonFields(f.Type))
		case name != "-":
			fields[name] = f
		}
	}
	return fields
}

// kindOf is the type that the document should give a Go type: a JSON type, or the name of a schema.
func kindOf(typ reflect.Type) string {
	if typ == reflect.TypeFor[time.Time]() {
		return "string"
	}
	switch typ.Kind() {
	case reflect.Pointer:
		return kindOf(typ.Elem())
	case reflect.Struct:
		return typ.Name()
	case reflect.Slice:
		if typ == reflect.TypeFor[json.RawMessage]() {
			return "object"
		}
		return "array"
	case reflect.Map:
		return "object"
	case reflect.Int, reflect.Int64:
		return "integer"
	case reflect.Float64:
		return "number"
	case reflect.Bool:
		return "boolean"
	}
	if typ == reflect.TypeFor[tgr.Status]() || typ == reflect.TypeFor[tgr.Conclusion]() {
		return typ.Name()
	}
	return "string"
}

func TestOpenAPIIsServed(t *testing.T) {
	s := newSite(t, newMemory(), nil)
	answer, body := ask(t, "GET", s.url+"/api/openapi.json", "")
	if answer.StatusCode != 200 || body != string(openapiJSON) {
		t.Errorf("%d, %d bytes", answer.StatusCode, len(body))
	}
}
