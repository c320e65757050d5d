"""The part of @rules_cc that Bazel's built-in rules load, on top of the native rules."""

_TAG = "__CC_RULES_MIGRATION_DO_NOT_USE_WILL_BREAK__"

def _with_tag(attrs):
    attrs["tags"] = (attrs.get("tags") or []) + [_TAG]
    return attrs

def cc_library(**attrs):
    native.cc_library(**_with_tag(attrs))

def cc_binary(**attrs):
    native.cc_binary(**_with_tag(attrs))

def cc_test(**attrs):
    native.cc_test(**_with_tag(attrs))

def cc_import(**attrs):
    native.cc_import(**_with_tag(attrs))

def cc_toolchain(**attrs):
    native.cc_toolchain(**_with_tag(attrs))

def cc_toolchain_suite(**attrs):
    native.cc_toolchain_suite(**_with_tag(attrs))

def cc_proto_library(**attrs):
    native.cc_proto_library(**_with_tag(attrs))

def fdo_prefetch_hints(**attrs):
    native.fdo_prefetch_hints(**_with_tag(attrs))

def fdo_profile(**attrs):
    native.fdo_profile(**_with_tag(attrs))
