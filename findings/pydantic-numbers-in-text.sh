# What pydantic takes for a number in text, outside its strict mode: 2.6.0 refuses spaces around it, for int and float, and 2.14.4 takes them;
# 2.6.0 takes "1." for an int, and 2.14.4 refuses it, where "1.0" is one for both. What one version has let into a file the other may
# not read back. A field with a default of a model's type is {"allOf": [{"$ref": …}]} in the JSON schema of the one, {"$ref": …} in the other's.
. "$(dirname "$0")/common.sh"
cat >text.py <<'PY'
from pydantic import BaseModel, TypeAdapter, ValidationError


class Inner(BaseModel):
    number: int = 1


class Outer(BaseModel):
    inner: Inner = Inner()


def said(kind, text):
    try:
        return repr(TypeAdapter(kind).validate_python(text))
    except ValidationError:
        return "refused"


inner = Outer.model_json_schema()["properties"]["inner"]
print(said(int, " 1 "), said(float, " 1 "), said(int, "1."), said(int, "1.0"), *(inner.keys() - {"default"}))
PY
python_packages pydantic==2.6.0
expect "2.6.0" "refused refused 1 1 allOf" "$(python text.py)"
python_packages pydantic==2.14.4
expect "2.14.4" "1 1.0 refused 1 \$ref" "$(python text.py)"
