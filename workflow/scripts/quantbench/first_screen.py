def first_screen(context):
    return dict(title=context.study["title"],study=context.study["study"],scope="x",answer=["TEMP answer"],notices=[],footer="f",
      table=dict(caption="c",columns=["scheme","a","verdict"],groups=[])),{}
